"""Which combinations are better than which, unit by unit: McNemar's test or the paired t-test, Holm over pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dnd.bench.costs import Cost, costs, pareto
from dnd.bench.outcome import Outcome
from dnd.bench.quality import choose_metric
from dnd.evaluation.estimates import tidy
from dnd.evaluation.intervals import Estimate, Floats, estimates, holm, paired


@dataclass(frozen=True)
class Difference:
    """How much more of the metric `name` has than `other`, over the units that both have."""

    name: str
    other: str
    estimate: Estimate
    p: float
    """Of no difference, corrected for how many pairs are compared."""

    @property
    def verdict(self) -> str:
        """ "better" or "worse" where p is below 0.05, else "no difference shown"."""
        if self.p >= 0.05:
            return "no difference shown"
        return "better" if self.estimate.value > 0 else "worse"


@dataclass(frozen=True)
class Bench:
    """A whole matrix, measured."""

    outcomes: Sequence[Outcome]
    metric: str | None
    reference: str
    figures: dict[str, dict[str, Estimate]]
    """Figure -> combination -> its mean over units."""
    differences: Sequence[Difference]
    """Of the metric, every pair once."""
    costs: dict[str, Cost]
    front: set[str]
    """Combinations on the Pareto front of metric and stand-alone seconds."""

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed]

    @property
    def exit_code(self) -> int:
        """3 where a combination, or a unit of one, has failed."""
        return 3 if self.failed or any(outcome.counts.get("failed") for outcome in self.outcomes) else 0

    def against(self, name: str) -> Difference | None:
        """A combination against the reference."""
        for one in self.differences:
            if (one.name, one.other) == (name, self.reference):
                return one
            if (one.other, one.name) == (name, self.reference):
                e = one.estimate
                return Difference(name, self.reference, Estimate(-e.value, -e.high, -e.low, e.n), one.p)
        return None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": 1,
            "metric": self.metric,
            "reference": self.reference,
            "combinations": [self._row(outcome) for outcome in self.outcomes],
            "differences": [
                {"name": one.name, "other": one.other, **_tidy(one.estimate), "p": tidy(one.p), "verdict": one.verdict}
                for one in self.differences
            ],
            "stages": _stages(self.outcomes),
            "front": sorted(self.front),
        }

    def _row(self, outcome: Outcome) -> dict[str, Any]:
        kept = {key: value for key, value in asdict(outcome).items() if key != "values"}
        cost = self.costs.get(outcome.name)
        figures = {name: _tidy(found[outcome.name]) for name, found in self.figures.items() if outcome.name in found}
        return {**kept, "figures": figures, "cost": cost and asdict(cost)}


def measure(outcomes: Sequence[Outcome], reference: str, metric: str | None = None) -> Bench:
    """Intervals, paired differences, costs. UsageError for a metric that does not exist."""
    done = [outcome for outcome in outcomes if not outcome.failed]
    names = sorted({figure for outcome in done for figure in outcome.values})
    chosen = choose_metric(metric, set(names))
    figures = {}
    for figure in names:
        own = [outcome for outcome in done if figure in outcome.values]
        levels = estimates(_columns(own, figure), ["mean"] * len(own))
        figures[figure] = dict(zip((outcome.name for outcome in own), levels, strict=True))
    found = costs(outcomes)
    points = [
        (name, alone, estimate.value)
        for name, estimate in (figures[chosen] if chosen else {}).items()
        if (alone := found[name].alone) is not None
    ]
    differences = _differences([o for o in done if chosen in o.values], chosen) if chosen else []
    return Bench(outcomes, chosen, reference, figures, differences, found, pareto(points))


def _columns(outcomes: Sequence[Outcome], figure: str) -> Floats:
    """(units, combinations), NaN where a combination does not have the unit."""
    units = sorted({unit for outcome in outcomes for unit in outcome.values[figure]})
    return np.array([[outcome.values[figure].get(unit, np.nan) for outcome in outcomes] for unit in units])


def _differences(outcomes: Sequence[Outcome], figure: str) -> list[Difference]:
    columns = _columns(outcomes, figure) if outcomes else np.zeros((0, 0))
    pairs = [(a, b) for a in range(len(outcomes)) for b in range(a + 1, len(outcomes))]
    if not pairs:
        return []
    found = [paired(columns[:, a], columns[:, b]) for a, b in pairs]
    corrected = holm([p for _, p in found])
    return [
        Difference(outcomes[a].name, outcomes[b].name, estimate, p)
        for (a, b), (estimate, _), p in zip(pairs, found, corrected, strict=True)
    ]


def _stages(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Per stage: how many of it there are (distinct keys), what all combinations asked for and what was computed."""
    found: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        for name, stage in outcome.stages.items():
            one = found.setdefault(name, {"keys": set(), "combinations": 0, "items": 0, "computed": 0, "seconds": 0.0})
            one["keys"].add(stage["key"])
            one["combinations"] += 1
            for column in ("items", "computed", "seconds"):
                one[column] += stage[column]
    return {name: {**one, "keys": len(one["keys"]), "seconds": round(one["seconds"], 1)} for name, one in found.items()}


def _tidy(estimate: Estimate) -> dict[str, Any]:
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**{key: tidy(value) for key, value in bounds.items()}, "n": estimate.n}
