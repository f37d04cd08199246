"""A figure: one number per unit, its mean with a confidence interval, and what two controls would have got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating[Any]]
Statistic = Literal["mean", "median"]


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap 95 % interval over units."""

    value: float
    low: float
    high: float
    n: int
    """Units it is taken over."""


@dataclass(frozen=True)
class Figure:
    """A figure of every unit, and of the same unit under two controls; NaN where a unit has none."""

    name: str
    """As in the JSON: "group.name"."""
    own: Floats
    """(n,) with the unit's own label."""
    shuffled: Floats
    """(n,) the mean over the labels of all other units: what labels shuffled between units are expected to get."""
    constant: Floats
    """(n,) with the one label that does best if every unit is given it."""
    constant_label: str
    if_abstained: Floats | None = None
    """(n,) what a unit without a label is given where abstentions count as wrong; None where that makes no sense."""
    statistic: Statistic = "mean"
    higher_is_better: bool = True
    chance: float | None = None
    """What guessing is known to get, where that is so."""


@dataclass(frozen=True)
class Summary:
    """A figure over all units."""

    figure: Figure
    own: Estimate
    shuffled: Estimate
    constant: Estimate
    with_abstentions: Estimate | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {
            "statistic": self.figure.statistic,
            "higher_is_better": self.figure.higher_is_better,
            "own": _record(self.own),
            "controls": {
                "shuffled": _record(self.shuffled),
                "constant": {**_record(self.constant), "label": self.figure.constant_label},
            },
            "with_abstentions_as_wrong": self.with_abstentions and _record(self.with_abstentions),
        }
        if self.figure.chance is not None:
            found["chance"] = self.figure.chance
        return found


def _record(estimate: Estimate) -> dict[str, Any]:
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**{key: tidy(value) for key, value in bounds.items()}, "n": estimate.n}


def tidy(value: float) -> float | None:
    """Six significant digits; None for NaN, which JSON has not."""
    return None if np.isnan(value) else float(f"{value:.6g}")


@dataclass
class Pairs:
    """A figure of every unit with every unit's label: own labels on the diagonal, the controls off it."""

    name: str
    values: Numbers
    """(n, n): unit, label."""
    constants: Numbers
    """(n, k): unit, label given to all."""
    constant_labels: Sequence[str]
    if_abstained: float | None = 0.0
    statistic: Statistic = "mean"
    higher_is_better: bool = True
    chance: float | None = None

    def figure(self, among: npt.NDArray[np.bool_] | None = None) -> Figure:
        """Its diagonal, the mean (or median) of the rest of each row, and the best column of `constants`.

        `among` (n,) are the units that it is about, if not all.
        """
        own = np.array(np.diagonal(self.values), np.float64)
        if among is None:
            among = np.ones(len(own), bool)
        others = np.array(self.values, np.float64)
        np.fill_diagonal(others, np.nan)
        middle = np.nanmean if self.statistic == "mean" else np.nanmedian
        shuffled = middle(others, axis=1) if len(own) > 1 else np.full(len(own), np.nan)
        constant, label = np.full(len(own), np.nan), ""
        if self.constants.size:
            levels = middle(self.constants[among], axis=0)
            best = int(np.nanargmax(levels if self.higher_is_better else -levels))
            constant, label = np.array(self.constants[:, best], np.float64), self.constant_labels[best]
        own, shuffled, constant = (np.where(among, those, np.nan) for those in (own, shuffled, constant))
        abstained = None if self.if_abstained is None else np.full(len(own), self.if_abstained)
        return Figure(
            self.name,
            own,
            shuffled,
            constant,
            label,
            abstained,
            self.statistic,
            self.higher_is_better,
            self.chance,
        )


def spread(figure: Figure, places: Sequence[int], n: int, abstained: npt.NDArray[np.bool_]) -> Figure:
    """A figure of some of n units, at their places, NaN elsewhere; `abstained` (n,) are those that gave no label."""

    def put(values: Floats) -> Floats:
        out = np.full(n, np.nan)
        out[list(places)] = values
        return out

    level = figure.if_abstained
    floor = None if level is None else np.where(abstained, level[0] if len(level) else np.nan, np.nan)
    return Figure(
        figure.name,
        put(figure.own),
        put(figure.shuffled),
        put(figure.constant),
        figure.constant_label,
        floor,
        figure.statistic,
        figure.higher_is_better,
        figure.chance,
    )


def summarise(figures: Sequence[Figure], seed: int = 0, resamples: int = 2000) -> list[Summary]:
    """Each figure over all units, its controls too, from the same resamples of units."""
    if not figures:
        return []
    columns, statistics = [], []
    for figure in figures:
        whole = (
            figure.own
            if figure.if_abstained is None
            else np.where(np.isnan(figure.own), figure.if_abstained, figure.own)
        )
        columns += [figure.own, figure.shuffled, figure.constant, whole]
        statistics += [figure.statistic] * 4
    found = bootstrap(np.stack(columns, axis=1), statistics, seed, resamples)
    summaries = []
    for place, figure in enumerate(figures):
        own, shuffled, constant, whole_too = found[4 * place : 4 * place + 4]
        summaries.append(
            Summary(figure, own, shuffled, constant, whole_too if figure.if_abstained is not None else None)
        )
    return summaries


def bootstrap(values: Floats, statistics: Sequence[Statistic], seed: int = 0, resamples: int = 2000) -> list[Estimate]:
    """(n, k): the mean or median of each column over its units that are not NaN, with a 95 % percentile interval.

    Units are drawn with replacement, the same draws for every column. The draws depend on the seed alone, and on
    the order of the units only as far as chance goes.
    """
    n = len(values)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float32)
    present = ~np.isnan(values)
    means = [i for i, statistic in enumerate(statistics) if statistic == "mean"]
    draws = np.full((resamples, values.shape[1]), np.nan)
    held = counts @ present[:, means].astype(np.float32)
    totals = counts.astype(np.float64) @ np.nan_to_num(values[:, means])
    draws[:, means] = np.divide(totals, held, out=np.full(totals.shape, np.nan), where=held > 0)
    for i in set(range(values.shape[1])) - set(means):
        draws[:, i] = _weighted_medians(values[:, i], counts)
    estimates = []
    for i, statistic in enumerate(statistics):
        column = values[present[:, i], i]
        if not len(column):
            estimates.append(Estimate(np.nan, np.nan, np.nan, 0))
            continue
        low, high = np.nanpercentile(draws[:, i], [2.5, 97.5])
        value = column.mean() if statistic == "mean" else np.median(column)
        estimates.append(Estimate(float(value), float(low), float(high), len(column)))
    return estimates


def _weighted_medians(values: Floats, counts: npt.NDArray[np.float32]) -> Floats:
    """The median of `values` (n,), each repeated as often as `counts` (B, n) says: (B,)."""
    kept = ~np.isnan(values)
    order = np.argsort(values[kept], kind="stable")
    ordered, running = values[kept][order], counts[:, kept][:, order].cumsum(axis=1)
    if not len(ordered):
        return np.full(len(counts), np.nan)
    total = running[:, -1:]
    lower = (running >= np.ceil(total / 2)).argmax(axis=1)
    upper = (running >= np.floor(total / 2) + 1).argmax(axis=1)
    found = (ordered[lower] + ordered[upper]) / 2
    return np.asarray(np.where(total[:, 0] > 0, found, np.nan), np.float64)
