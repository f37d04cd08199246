"""From the choices of a run file to a target, a probing set and units."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dnd.api import ProbingSet, Runtime, Target, Unit
from dnd.config.run import Run
from dnd.config.units import parse_units
from dnd.errors import DndError
from dnd.plugin.registry import Registry
from dnd.probing.sets import FolderSet, UnionSet
from dnd.target.load import Preprocess, load_function

if TYPE_CHECKING:
    import torch


def build_module(target: Target | None, run: Run) -> tuple[torch.nn.Module, Preprocess]:
    """The network to study, and what prepares an image for it."""
    if target is None:
        return load_function(run.target.name)
    try:
        return target.build()
    except DndError:
        raise
    except Exception as error:
        error.add_note(f"in the target {target.name!r}, while it was built")
        raise


def make_target(run: Run, registry: Registry, runtime: Runtime) -> Target | None:
    """The named target; None for a function of the user's own."""
    if run.target.kind != "target":
        return None
    return cast(Target, registry.make("target", run.target.name, run.target.config, runtime))


def make_probing(run: Run, registry: Registry, runtime: Runtime, memory: Path) -> ProbingSet:
    sets: list[ProbingSet] = []
    for choice in run.probing:
        if choice.kind == "folder":
            sets.append(FolderSet(Path(choice.name), memory))
        else:
            sets.append(cast(ProbingSet, registry.make("probing-set", choice.name, choice.config, runtime)))
    return sets[0] if len(sets) == 1 else UnionSet(sets)


def chosen_units(run: Run, sizes: Mapping[str, int]) -> list[Unit]:
    return [Unit(layer, i) for layer in run.target.layers for i in parse_units(run.target.units, sizes[layer])]
