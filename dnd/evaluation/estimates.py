"""A figure: one number per unit, its mean with a confidence interval, and what two controls would have got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dnd.evaluation.intervals import Estimate, Floats, Statistic, estimates, is_share, paired

Numbers = npt.NDArray[np.floating[Any]]


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
    """(n,) with one label for all: for each unit the one that does best on all other units."""
    constant_label: str
    """The one that does best on all units."""
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
    above_shuffled: Estimate
    """Own minus shuffled, unit by unit."""
    with_abstentions: Estimate | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {
            "statistic": self.figure.statistic,
            "higher_is_better": self.figure.higher_is_better,
            "own": self.own.record(),
            "controls": {
                "shuffled": self.shuffled.record(),
                "constant": {**self.constant.record(), "label": self.figure.constant_label},
            },
            "own_minus_shuffled": self.above_shuffled.record(),
            "with_abstentions_as_wrong": self.with_abstentions and self.with_abstentions.record(),
        }
        if self.figure.chance is not None:
            found["chance"] = self.figure.chance
        return found


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
        """Its diagonal, the mean (or median) of the rest of each row, and the best of `constants` on the other units.

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
            constant[among] = left_out(self.constants[among], self.statistic, self.higher_is_better)
            label = self.constant_labels[best]
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


def left_out(constants: Numbers, statistic: Statistic = "mean", higher_is_better: bool = True) -> Floats:
    """(n, k) of units and labels given to all -> (n,): each unit's value with the label that is best on the others.

    The label that is best on all units, this one included, would be chosen by what it is then measured on. NaN where
    there is only one unit.
    """
    n = len(constants)
    if n < 2:
        return np.full(n, np.nan)
    sign = 1.0 if higher_is_better else -1.0
    found = np.empty(n)
    if statistic == "mean":
        there = ~np.isnan(constants)
        totals, counts = np.nansum(constants, axis=0, dtype=np.float64), there.sum(axis=0)
        for i, row in enumerate(constants):
            rest = (totals - np.nan_to_num(row)) / np.maximum(1, counts - there[i])
            found[i] = row[int(np.argmax(sign * rest.round(9)))]  # equal ones tie, however they were added up
        return found
    order = np.argsort(constants, axis=0, kind="stable")
    ordered, places = np.take_along_axis(constants, order, 0), np.argsort(order, axis=0)
    lower, upper = (n - 2) // 2, (n - 1) // 2  # of the n - 1 that are left
    columns = np.arange(constants.shape[1])
    for i, place in enumerate(places):
        rest = (ordered[lower + (place <= lower), columns] + ordered[upper + (place <= upper), columns]) / 2
        found[i] = constants[i, int(np.argmax(sign * rest))]
    return found


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
    found = estimates(np.stack(columns, axis=1), statistics, seed, resamples)
    summaries = []
    for place, figure in enumerate(figures):
        own, shuffled, constant, whole_too = found[4 * place : 4 * place + 4]
        summaries.append(
            Summary(
                figure,
                own,
                shuffled,
                constant,
                _above(figure, own, seed, resamples),
                whole_too if figure.if_abstained is not None else None,
            )
        )
    return summaries


def _above(figure: Figure, own: Estimate, seed: int, resamples: int) -> Estimate:
    """Own minus shuffled, unit by unit. Where own is a share its interval is no narrower than the share's: the
    shuffled value is a mean over all other units and hardly varies, so that a bootstrap of all right ones would not."""
    apart, _ = paired(figure.own, figure.shuffled, seed, resamples)
    if not apart.n or figure.statistic != "mean" or not is_share(figure.own):
        return apart
    level = own.value - apart.value
    return Estimate(apart.value, min(apart.low, own.low - level), max(apart.high, own.high - level), apart.n)
