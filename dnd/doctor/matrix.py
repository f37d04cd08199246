"""`dnd bench --dry-run`: what each combination takes at most, with no backend loaded and nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from dnd.api import Runtime
from dnd.config.run import Run
from dnd.config.units import SHOWN, parse_units
from dnd.doctor.plan import count_images, count_units, read_target
from dnd.doctor.space import drawn_pixels, store_bytes
from dnd.models.weights import Weights
from dnd.pipeline.build import Builder
from dnd.pipeline.plan import plan_stages
from dnd.pipeline.rates import Rate
from dnd.plugin.registry import Registry

_MANY = 10_000_000
"""More units than a layer has."""


@dataclass(frozen=True)
class CombinationPlan:
    """Of one combination by itself, with nothing of it in the store."""

    name: str
    units: int | None
    seconds: float | None
    """At most, by the rates of earlier runs on this machine; None where a stage's is not known."""
    store_bytes: float | None
    """At most; unknown images are taken as 1024 x 1024."""
    models: tuple[str, ...]


class Planner:
    """Builds each target, and counts each probing set, once."""

    def __init__(self, registry: Registry, weights: Weights, rates: Mapping[str, Rate]) -> None:
        self._registry, self._rates = registry, rates
        self._runtime = Runtime("cpu", weights.resolve)
        self._units, self._images = cache(self._count_units), cache(self._count_images)
        self._runs: dict[str, Run] = {}

    def plan(self, name: str, run: Run) -> CombinationPlan:
        key = repr((run.target, run.probing))
        self._runs[key] = run
        units, images = self._units(key), self._images(key)
        stages = plan_stages(run, units, images, self._rates)
        times = [stage.seconds for stage in stages]
        seconds = None if None in times else sum(time or 0 for time in times)
        space = None if units is None else store_bytes(run, units, images, drawn=self._drawn(run))
        return CombinationPlan(name, units, seconds, space, tuple(run.models()))

    def _drawn(self, run: Run) -> float:
        return drawn_pixels(run.choices().get("generator"), Builder(self._registry, self._runtime))[0]

    def _count_units(self, key: str) -> int | None:
        run = self._runs[key]
        counted = count_units(run, read_target(run, self._registry, self._runtime))
        if isinstance(counted, int) or run.target.units.strip() in ("all", SHOWN):
            return counted if isinstance(counted, int) else None
        return len(parse_units(run.target.units, _MANY)) * len(run.target.layers)  # a target that is not here

    def _count_images(self, key: str) -> int | None:
        sizes = [count_images(one, self._registry, self._runtime) for one in self._runs[key].probing]
        return sum(int(size) for size in sizes) if all(isinstance(size, int) for size in sizes) else None
