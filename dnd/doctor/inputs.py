"""What is studied: the probing images, the target, its layers and units."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dnd.api import ProbingSet
from dnd.config.run import Choice
from dnd.config.units import SHOWN, parse_units
from dnd.doctor.check import Check, Context
from dnd.errors import DndError
from dnd.plugin.requirements import check_packages

if TYPE_CHECKING:
    import torch

_SAMPLE = 8
"""Images that are decoded, spread over a set."""


def check_probing(context: Context) -> Iterator[Check]:
    """Each set: there, not empty, and some of its images open."""
    sections = {name: choice for name, choice in context.choices().items() if name.partition(".")[0] == "probing"}
    counts: list[int] = []
    pixels: list[float] = []
    for number, choice in enumerate(sections.values(), 1):
        name = "probing" if len(sections) == 1 else f"probing.{number}"
        try:
            opened = open_set(context, choice)
            counts.append(len(opened))
            yield _look_at(name, choice.name, opened, pixels)
        except DndError as error:
            yield Check.of(name, error)
        except Exception as error:
            remedy = "Mend the set, or choose another with --probe."
            yield Check(name, "fault", f"{choice.name}: {type(error).__name__}: {error}", remedy)
    if len(counts) == len(sections):
        context.images = sum(counts)
    context.pixels = fmean(pixels) if pixels else None


def open_set(context: Context, choice: Choice) -> ProbingSet:
    if choice.kind != "folder":
        check_packages([context.registry.find(choice.kind, choice.name)])
    return context.builder.probing([choice])


def _look_at(name: str, label: str, opened: ProbingSet, pixels: list[float]) -> Check:
    remedy = "Choose a folder of images that open with --probe."
    if not len(opened):
        return Check(name, "fault", f"{label} has no images", remedy)
    tried = sorted({index * len(opened) // _SAMPLE for index in range(_SAMPLE)})
    wrong = []
    for index in tried:
        try:
            image = opened.open(index)
            pixels.append(image.width * image.height)
        except (OSError, ValueError) as error:
            wrong.append(f"{opened.image_name(index)}: {error}")
    detail = f"{label}: {len(opened):,} images, {len(tried) - len(wrong)} of {len(tried)} tried open"
    if not wrong:
        return Check(name, "ok", detail)
    if len(wrong) == len(tried):
        return Check(name, "fault", f"{detail}; {wrong[0]}", remedy)
    return Check(name, "warning", f"{detail}; {wrong[0]}", "Those are skipped: replace them if they matter.")


def check_target(context: Context) -> Iterator[Check]:
    """Builds it on the CPU as the run would; then each layer by itself, with its units."""
    if "target" not in context.choices():
        return
    name = context.run.target.name
    try:
        module, preprocess = build_target(context)
        from dnd.target.fingerprint import fingerprint

        fingerprint(module, preprocess)
    except DndError as error:
        yield Check.of("target", error)
        return
    except Exception as error:
        remedy = "Mend the target's code: it must give (module, preprocess)."
        yield Check("target", "fault", f"{name} cannot be built: {type(error).__name__}: {error}", remedy)
        return
    tensors = [*module.parameters(), *module.buffers()]
    context.target_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    count = sum(parameter.numel() for parameter in module.parameters())
    yield Check("target", "ok", f"{name}: {type(module).__name__}, {count / 1e6:,.1f} million parameters")
    found = [_layer(context, module, preprocess, number) for number in range(len(context.run.target.layers))]
    yield from (check for check, _, _ in found)
    if all(check.state == "ok" for check, _, _ in found):
        context.units = sum(chosen for _, chosen, _ in found)
        context.width = sum(size for _, _, size in found)


def build_target(context: Context) -> tuple[torch.nn.Module, Any]:
    """(module, preprocess), as the run would have it."""
    choice = context.run.target
    if choice.kind == "target":
        check_packages([context.registry.find("target", choice.name)])
    return context.builder.module(choice)


def _layer(context: Context, module: torch.nn.Module, preprocess: Any, number: int) -> tuple[Check, int, int]:
    """The check of a layer by its place, how many of its units are wanted, how many it has."""
    from dnd.target.behaviour import behaviour
    from dnd.target.hooked import HookedTarget

    layer, run = context.run.target.layers[number], context.run
    name, reads = f"layer.{layer}", run.target.reads.of(number)
    try:
        with HookedTarget(module, preprocess, [layer], pooling=run.exemplars.pooling, reads=reads) as hooked:
            size = hooked.layer_sizes()[layer]
        behaviour(module, preprocess, hooked.readings)
    except DndError as error:
        return Check.of(name, error), 0, 0
    except Exception as error:
        remedy = "Does preprocess give what the module wants?"
        detail = f"a forward pass of {context.run.target.name} fails: {type(error).__name__}: {error}"
        return Check(name, "fault", detail, remedy), 0, 0
    if context.run.target.units.strip() == SHOWN:
        return Check(name, "ok", f"{size:,} units, of which those are wanted that the images show"), size, size
    try:
        chosen = len(parse_units(context.run.target.units, size))
    except DndError as error:
        return Check(name, "fault", str(error), f"Choose within --units 0-{size - 1}, or --units all."), 0, size
    return Check(name, "ok", f"{size:,} units, {chosen:,} of them wanted; {hooked.readings[layer]}"), chosen, size
