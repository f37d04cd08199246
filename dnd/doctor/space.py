"""Is there room: memory for each stage, disk for what the run leaves, folders that can be written."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dnd.api import Backend, Generator
from dnd.config.run import Choice, Run
from dnd.doctor.check import Check, Context, State, gigabytes
from dnd.errors import DndError, ModelError
from dnd.pipeline.activations import WIDE
from dnd.pipeline.build import Builder
from dnd.pipeline.plan import stage_items
from dnd.runtime.memory import Need, estimate, free_memory, work_beside
from dnd.store.folders import cache_folder, store_folder

PNG_BYTES = 2.2
"""Of a pixel: photographs took 1.4 to 2.0 as the store writes them."""
UNIT_BYTES = 30_000
"""Of a unit in the run folder's tables."""
_MEGAPIXEL = 1024 * 1024
"""Assumed where an image's size is not known."""
_TIGHT = 0.5
"""Below this share of what a run takes at most, it is not expected to get through."""


def check_memory(context: Context) -> Iterator[Check]:
    """Each stage has its devices to itself, so each is held against all that is free on the fullest."""
    device, free = min(((one, free_memory(one)[0]) for one in set(context.devices)), key=lambda pair: pair[1])
    copies = context.devices.count(device)  # a device named twice runs two of everything
    if context.target_bytes is not None:
        need = Need(context.target_bytes, work_beside(context.target_bytes, device), "its parameters")
        yield _compare("memory.target", need, free // copies, device)
    for section in context.helpers():
        try:
            need_or_none = _need(context, section, device)
        except DndError as error:
            yield Check(f"memory.{section}", "warning", f"not known: {error}", error.hint)
            continue
        except Exception as error:
            yield Check(f"memory.{section}", "warning", f"not known: {type(error).__name__}: {error}")
            continue
        if need_or_none is None:
            yield Check(f"memory.{section}", "ok", "no models")
        else:
            yield _compare(f"memory.{section}", need_or_none, free // copies, device)


def _need(context: Context, section: str, device: str) -> Need | None:
    choice = context.choices()[section]
    made = context.builder.plugin(choice)
    try:
        reported = made.memory() if isinstance(made, Backend) else None
    except ModelError:  # a model is not here: its size in models.lock must do
        reported = None
    if reported is not None:
        return Need(reported, 0, "as the backend says")
    return estimate(choice.config, context.weights, device)


def _compare(name: str, need: Need, free: int, device: str) -> Check:
    parts = f"{gigabytes(need.weights)} of weights, {need.how}, + {gigabytes(need.work)} for the work, by rule of thumb"
    what = parts if need.work else f"{gigabytes(need.weights)}, {need.how}"
    detail = f"{what}; {gigabytes(free)} free on {device}"
    if need.total <= free:
        return Check(name, "ok", detail)
    section = name.partition(".")[2]
    if section == "target":
        return Check(name, "fault", detail, "Free memory, or choose another --device.")
    remedy = (
        f"Free memory (`nvidia-smi` shows who has it), take --set {section}.quantization=4bit if it has that "
        f"setting, or a smaller --set {section}.model=NAME."
        if device != "cpu"
        else f"Free memory, or take a smaller model: --set {section}.model=NAME (`dnd models list`)."
    )
    return Check(name, "fault" if need.sure else "warning", detail, remedy)


# --- disk --------------------------------------------------------------------------------------------


def check_disk(context: Context) -> Iterator[Check]:
    """What the run may write at most, against what is free where it goes."""
    units = context.units
    if units is None:
        yield Check(
            "disk", "warning", "not known, as the number of units is not", "Mend the faults of the target first."
        )
        return
    drawn, sure = drawn_pixels(context.helpers().get("generator"), context.builder)
    sure = sure and context.pixels is not None
    stored = store_bytes(context.run, units, context.images, drawn=drawn, pixels=context.pixels, width=context.width)
    needs = {"disk.store": (context.store, stored), "disk.out": (context.out, float(units * UNIT_BYTES))}
    for name, (folder, need) in needs.items():
        free = shutil.disk_usage(existing(folder)).free
        what = f"at most {gigabytes(need)} for {units:,} units" + (
            "" if sure else ", taking unknown images as 1024x1024"
        )
        detail = f"{what}; {gigabytes(free)} free at {folder}"
        if need <= free:
            yield Check(name, "ok", detail)
        else:
            move = "export DND_STORE=FOLDER on a larger disk" if name == "disk.store" else "choose another --out"
            state: State = "fault" if sure and free < _TIGHT * need else "warning"
            yield Check(name, state, detail, f"Free space (`du -sh {folder}`), or {move}, or label fewer --units.")


def store_bytes(
    run: Run, units: int, images: int | None, *, drawn: float, pixels: float | None = None, width: int | None = None
) -> float:
    """What a run adds to the store at most. `drawn` and `pixels` are those of a generated and of a probing image,
    `width` the units of its layers."""
    items = stage_items(run, units, images)
    kept = items["captions"] + min(run.exemplars.sample, images or run.exemplars.sample)
    pictures = PNG_BYTES * (kept * (pixels or _MEGAPIXEL) + (items["images"] + items.get("verify", 0)) * drawn)
    rows = float(units * UNIT_BYTES)  # in the store and its temporary files much as in labels.jsonl
    width = width or units
    kept_of_each = width if width < WIDE else 1  # at most: an image whose concept several units hold is one of several
    return pictures + 4.0 * kept_of_each * items["activations"] + rows


def drawn_pixels(choice: Choice | None, builder: Builder) -> tuple[float, bool]:
    """Pixels of a generated image, and whether its generator knows that."""
    size = None
    if choice is not None:
        made = builder.plugin(choice)
        with suppress(ModelError):  # whose settings would tell
            size = made.image_size() if isinstance(made, Generator) else None
    return (float(math.prod(size)), True) if size else (_MEGAPIXEL, False)


# --- folders -----------------------------------------------------------------------------------------


def check_folders(context: Context) -> Iterator[Check]:
    """The run folder is free and can be written, and so can the store and the cache."""
    for name, folder, move in (
        ("folder.out", context.out, "choose another folder with --out"),
        ("folder.store", context.store, "export DND_STORE=FOLDER"),
        ("folder.cache", cache_folder(), "export DND_CACHE=FOLDER"),
    ):
        above = existing(folder)
        try:
            with tempfile.TemporaryFile(dir=above):
                yield Check(name, "ok", f"{folder} can be written")
        except OSError as error:
            remedy = f"chmod u+w {above}, or {move}"
            yield Check(name, "fault", f"{folder} cannot be written: {error.strerror or error}", remedy)
    yield Check(
        "folder.models", "ok", f"{store_folder()} {'is here' if store_folder().is_dir() else 'is not there yet'}"
    )


def check_run_folder(context: Context) -> Iterator[Check]:
    """The run folder is no other run's, and no other process is at work in it."""
    from dnd.pipeline.execute import check_folder
    from dnd.store.locks import LOCK, only_here

    try:
        if context.whole:
            check_folder(context.out, context.run, context.registry, context.fresh)
        if (context.out / LOCK).exists():
            with only_here(context.out):  # left by a run that was killed: it goes
                pass
    except DndError as error:
        yield Check.of("run-folder", error)
        return
    there = context.whole and (context.out / "run.toml").exists()
    again = " and holds this run: what is finished is kept" if there else ""
    yield Check("run-folder", "ok", f"{context.out} is free{again}")


def existing(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    folder = Path(os.path.abspath(folder))
    return next(one for one in (folder, *folder.parents) if one.is_dir())
