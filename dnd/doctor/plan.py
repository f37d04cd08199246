"""`dnd run --dry-run`: what a run is about, with no backend loaded and nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dnd.api import Runtime
from dnd.config.run import Choice, Run
from dnd.config.units import SHOWN, parse_units
from dnd.errors import DndError
from dnd.pipeline.build import Builder
from dnd.plugin.registry import Registry

if TYPE_CHECKING:
    from dnd.target.layout import Reading


def count_images(choice: Choice, registry: Registry, runtime: Runtime) -> int | str:
    """How many images, or what is wrong with the set."""
    try:
        return len(Builder(registry, runtime).probing([choice]))
    except DndError as error:
        return f"problem: {error}"


def read_target(run: Run, registry: Registry, runtime: Runtime) -> dict[str, Reading] | str:
    """How each layer is read, the target built on the CPU; or why it cannot be built. UsageError where it does not have
    the layers."""
    from dnd.target.hooked import HookedTarget

    try:
        module, preprocess = Builder(registry, runtime).module(run.target)
    except DndError as error:
        return str(error)
    except Exception as error:  # the user's own code
        return f"{run.target.name} cannot be built: {type(error).__name__}: {error}"
    with HookedTarget(module, preprocess, run.target.layers, reads=run.target.reads) as hooked:
        return hooked.readings


def count_units(run: Run, readings: Mapping[str, Reading] | str) -> int | str:
    """How many units the run is about, or why that is not known. UsageError where the layers do not have them."""
    if isinstance(readings, str):
        return readings
    sizes = [reading.size for reading in readings.values()]
    if run.target.units.strip() == SHOWN:
        return f"those that the images show, of {sum(sizes):,}"
    return sum(len(parse_units(run.target.units, size)) for size in sizes)
