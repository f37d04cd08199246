"""`dnd run --dry-run`: what a run would do and how long it would take, with no backend loaded and nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnd.api import Runtime
from dnd.config.run import OWN_METHOD, Choice, Run
from dnd.config.units import SHOWN, parse_units
from dnd.errors import DndError, UsageError
from dnd.pipeline.build import Builder
from dnd.pipeline.rates import BACKEND_OF, Rate, find_rate
from dnd.plugin.registry import Registry

if TYPE_CHECKING:
    from dnd.target.layout import Reading


def stage_items(run: Run, units: int, images: int | None) -> dict[str, int]:
    """How many items each stage has at most; the probing pass is left out where its images are not known."""
    k, n, m = run.exemplars.k, run.concepts.n, run.images.n
    found = {} if images is None else {"exemplars": images}
    if run.exemplars.crops:
        found["crops"] = units
    drawn = units * n * m
    return found | {
        "captions": units * k,
        "concepts": units,
        "images": drawn,
        "activations": drawn,
        "scores": units,
    }


def _size(choice: Choice, registry: Registry, runtime: Runtime) -> int | str:
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


# --- stages ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StagePlan:
    """What is known of a stage beforehand."""

    name: str
    items: int | None
    """At most; None where it hangs on something that is not known."""
    rate: Rate | None

    @property
    def seconds(self) -> float | None:
        """At most, if the rate holds; None where no rate is known."""
        return None if self.items is None or self.rate is None else self.rate.seconds(self.items)


def plan_stages(run: Run, units: int | None, images: int | None, rates: Mapping[str, Rate]) -> list[StagePlan]:
    """The stages that this run has, in order."""
    try:
        _ = run.devices
    except UsageError:  # not here: nothing was measured on it either
        rates = {}
    items = stage_items(run, units or 0, images or 0)
    own_method = run.method.name == OWN_METHOD  # what another one asks its backends is not known
    known = {name: units is not None and (own_method or name == "crops") for name in items}
    known["exemplars"] = images is not None
    has = run.choices()
    return [
        StagePlan(name, count if known[name] else None, find_rate(run, name, rates) if rates else None)
        for name, count in items.items()
        if BACKEND_OF.get(name, "target") in has and (name != "activations" or (own_method and "generator" in has))
    ]
