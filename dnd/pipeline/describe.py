"""`dnd.describe`: the main job from Python, for a module in memory or a target by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dnd.config.read import build_run
from dnd.config.tables import apply_options, read_tables
from dnd.config.units import unit_text
from dnd.errors import UsageError
from dnd.offline.block import offline
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder
from dnd.store.locks import run_folder
from dnd.target.load import Preprocess

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from rich.console import Console


def describe(
    model: torch.nn.Module | str,
    *,
    layer: str | Sequence[str],
    images: str | os.PathLike[str] | Sequence[str],
    preprocess: Callable[[Image], torch.Tensor] | None = None,
    units: str | Iterable[int] = "all",
    layout: str | Sequence[str] | None = None,
    call: int | None = None,
    at: str | None = None,
    output: int | str | None = None,
    tokens: str | int | None = None,
    heads: int | None = None,
    sign: str | None = None,
    directions: str | os.PathLike[str] | None = None,
    relu: bool | None = None,
    sae: str | os.PathLike[str] | None = None,
    captioner: str | None = None,
    summarizer: str | None = None,
    generator: str | None = None,
    scorer: str | None = None,
    settings: Mapping[str, Any] | None = None,
    runfile: str | os.PathLike[str] = "full",
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    device: str = "auto",
    fresh: bool = False,
    console: Console | None = None,
) -> RunFolder:
    """Say in plain words what units of `model` respond to.

    `model` is a live module, with `preprocess` from an RGB image to its input (C, H, W), or a target's name.
    `layer` is one or several dotted names; what follows from `layout` to `sae` says how they are read (see [target]
    in the reference); `images` one or several folders or named probing sets. What is not given comes from
    `runfile`; `settings` are its dotted keys ({"captioner.num_beams": 5}). Results are kept in `out` (default
    runs/<time>) and reused as the command line does. Raises DndError for what its caller can mend; a unit that
    fails is in the result with its reason.
    """
    live = _live(model, preprocess)
    probes = [os.fspath(images)] if isinstance(images, str | os.PathLike) else [os.fspath(i) for i in images]
    options: dict[str, Any] = {
        "target.name": model if isinstance(model, str) else type(model).__name__,
        "target.layers": [layer] if isinstance(layer, str) else list(layer),
        "target.units": unit_text(units),
        "probing.sets": probes,
        "seed": seed,
        "device": device,
    }
    axes = layout if layout is None or isinstance(layout, str) else list(layout)
    reads = {"layout": axes, "call": call, "at": at, "output": output, "tokens": tokens, "heads": heads, "sign": sign}
    files = {"directions": directions, "sae": sae}
    reads |= {"relu": relu, **{name: os.fspath(file) for name, file in files.items() if file is not None}}
    options |= {f"target.{name}": value for name, value in reads.items() if value is not None}
    chosen = {"captioner": captioner, "summarizer": summarizer, "generator": generator, "scorer": scorer}
    options |= {f"{kind}.backend": name for kind, name in chosen.items() if name is not None}
    tables = read_tables(runfile)
    apply_options(tables, options)
    apply_options(tables, dict(settings or {}))
    registry = Registry.load()
    run = build_run(tables, registry, live_target=live is not None)
    folder = run_folder(out)
    with offline():
        return execute(run, folder, fresh=fresh, console=console, registry=registry, live=live)


def _live(
    model: torch.nn.Module | str, preprocess: Callable[[Image], torch.Tensor] | None
) -> tuple[torch.nn.Module, Preprocess] | None:
    """The module with its preprocess; None for a target's name. Raises UsageError."""
    if isinstance(model, str):
        return None
    if not hasattr(model, "named_modules"):
        exported = type(model).__name__ == "ExportedProgram"
        hint = "torch.export.unflatten(program) gives one." if exported else ""
        raise UsageError(
            f"the model is a {type(model).__name__}",
            f"Give a torch.nn.Module, or a target's name. {hint}".strip(),
        )
    if preprocess is None:
        raise UsageError(
            "a live model needs preprocess=", "Give the function that turns an RGB PIL image into its input tensor."
        )
    return model, preprocess
