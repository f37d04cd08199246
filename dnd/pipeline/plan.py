"""A run's stages beforehand: how many items each has at most, and how long it takes by the rates of earlier runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dnd.config.run import OWN_METHODS, Run
from dnd.errors import UsageError
from dnd.pipeline.rates import BACKEND_OF, Rate, find_rate

NAMES = 6
"""That a label is verified beside, at most, itself included (dnd/evaluation/verify.py)."""


def stage_items(run: Run, units: int, images: int | None) -> dict[str, int]:
    """How many items each stage has at most; the probing pass is left out where its images are not known."""
    k, n, m = run.exemplars.k, run.concepts.n, run.images.n
    found = {} if images is None else {"exemplars": images}
    if run.exemplars.crops:
        found["crops"] = units
    drawn = units * n * m
    verified = units * NAMES * run.verify.n
    return found | {
        "captions": units * k,
        "concepts": units,
        "images": drawn,
        "activations": drawn,
        "scores": units,
        **({"verify": verified} if verified else {}),
    }


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
    own_method = run.method.name in OWN_METHODS  # what another one asks its backends is not known
    known = {name: units is not None and (own_method or name in ("crops", "verify")) for name in items}
    known["exemplars"] = images is not None
    has = run.choices()
    return [
        StagePlan(name, count if known[name] else None, find_rate(run, name, rates) if rates else None)
        for name, count in items.items()
        if BACKEND_OF.get(name, "target") in has and (name != "activations" or (own_method and "generator" in has))
    ]
