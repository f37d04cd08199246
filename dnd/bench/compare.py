"""Which combinations are better than which, unit by unit: McNemar's test or a paired t-test, Holm over pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dnd.bench.costs import Cost, costs, pareto
from dnd.bench.effects import Effect, effects
from dnd.bench.outcome import Outcome, merge
from dnd.bench.quality import EXACT, GRADED, choose_metric
from dnd.bench.repeats import difference, level
from dnd.evaluation.intervals import Estimate, Floats, holm, tidy


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
        return verdict_of(self.estimate, self.p)


def verdict_of(estimate: Estimate, p: float) -> str:
    """ "better" or "worse" where p is below 0.05, else "no difference shown"."""
    if p >= 0.05:
        return "no difference shown"
    return "better" if estimate.value > 0 else "worse"


@dataclass(frozen=True)
class Bench:
    """A whole matrix, measured."""

    outcomes: Sequence[Outcome]
    """One of each combination, whose repeats are merged."""
    runs: Mapping[str, Sequence[Outcome]]
    """Combination -> its repeats."""
    metric: str | None
    reference: str
    figures: dict[str, dict[str, Estimate]]
    """Figure -> combination -> its mean over units."""
    differences: Sequence[Difference]
    """Of the metric, every pair once."""
    costs: dict[str, Cost]
    front: set[str]
    """Combinations on the Pareto front of metric and stand-alone seconds."""
    effects: Sequence[Effect]
    """Of the metric, axis by axis."""

    @property
    def repeats(self) -> int:
        """Runs of a combination, at most."""
        return max(map(len, self.runs.values()), default=1)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed]

    @property
    def exit_code(self) -> int:
        """3 where a combination, or a unit of one, has failed."""
        return 3 if self.failed or any(outcome.counts.get("failed") for outcome in self.outcomes) else 0

    def right(self, name: str) -> float | None:
        """How many labels of a run are right, on average; None where that is not known."""
        levels = self.figures.get(GRADED) or self.figures.get(EXACT) or {}
        return levels[name].value * levels[name].n if name in levels else None

    def price(self, name: str) -> float | None:
        """Seconds alone per right label; None where one of the two is not known, or none is right."""
        right, cost = self.right(name), self.costs.get(name)
        return cost.alone / right if right and cost and cost.alone is not None else None

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
                {
                    "name": one.name,
                    "other": one.other,
                    **one.estimate.record(),
                    "p": tidy(one.p),
                    "verdict": one.verdict,
                }
                for one in self.differences
            ],
            "effects": [
                {
                    **{name: getattr(one, name) for name in ("axis", "variant", "base", "combinations")},
                    **{"mean": tidy(one.mean), "base_mean": tidy(one.base_mean)},
                    **{"difference": one.estimate.record(), "p": tidy(one.p)},
                }
                for one in self.effects
            ],
            "stages": _stages([run for runs in self.runs.values() for run in runs]),
            "front": sorted(self.front),
        }

    def _row(self, outcome: Outcome) -> dict[str, Any]:
        kept = {key: value for key, value in asdict(outcome).items() if key not in ("values", "labels", "repeat")}
        kept |= {"repeats": len(self.runs[outcome.name])}
        cost = self.costs.get(outcome.name)
        figures = {name: found[outcome.name].record() for name, found in self.figures.items() if outcome.name in found}
        return {**kept, "figures": figures, "cost": cost and asdict(cost)}


def measure(outcomes: Sequence[Outcome], reference: str, metric: str | None = None) -> Bench:
    """Intervals, paired differences, main effects, costs. UsageError for a metric that does not exist."""
    runs: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        runs.setdefault(outcome.name, []).append(outcome)
    merged = {name: merge(own) for name, own in runs.items()}
    done = {name: own for name, own in runs.items() if not merged[name].failed}
    names = sorted({figure for own in done.values() for figure in own[0].values})
    chosen = choose_metric(metric, set(names))
    figures = {name: {k: level(v) for k, v in _values(done, name).items()} for name in names}
    found = costs(outcomes)
    points = [
        (name, alone, estimate.value)
        for name, estimate in (figures[chosen] if chosen else {}).items()
        if (alone := found[name].alone) is not None
    ]
    values = _values(done, chosen) if chosen else {}
    variants = {name: one.variants for name, one in merged.items()}
    return Bench(
        list(merged.values()),
        runs,
        chosen,
        reference,
        figures,
        _differences(values),
        found,
        pareto(points),
        effects(values, variants, variants.get(reference, {})),
    )


def _values(runs: Mapping[str, Sequence[Outcome]], figure: str) -> dict[str, Floats]:
    """Combination -> (units, repeats), the same units in all, NaN where it does not have one."""
    own = {name: repeats for name, repeats in runs.items() if figure in repeats[0].values}
    units = sorted({unit for repeats in own.values() for one in repeats for unit in one.values.get(figure, {})})
    return {
        name: np.array([[one.values.get(figure, {}).get(unit, np.nan) for one in repeats] for unit in units])
        for name, repeats in own.items()
    }


def _differences(values: Mapping[str, Floats]) -> list[Difference]:
    """Of the pairs that label the same units, if only some: latents are compared with none that labels channels."""
    pairs = [(a, b) for a, b in combinations(values, 2) if not np.isnan(values[a] - values[b]).all()]
    found = [difference(values[one], values[other]) for one, other in pairs]
    corrected = holm([p for _, p in found])
    return [
        Difference(one, other, estimate, p)
        for (one, other), (estimate, _), p in zip(pairs, found, corrected, strict=True)
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
