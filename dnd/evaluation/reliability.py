"""Do confidences mean what they say? Figures of probabilities against what turned out right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnd.evaluation.intervals import tail, wilson

Numbers = npt.NDArray[np.float64]
BINS = 10


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval over units."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bin:
    """Labels of like confidence."""

    low: float
    high: float
    n: int
    confidence: float
    """Their mean."""
    right: Interval
    """The share that is right, with Wilson's 95 % interval."""


@dataclass(frozen=True)
class Reliability:
    """How far confidences can be trusted."""

    n: int
    right: float
    ece: Interval
    """Expected calibration error: the mean distance of confidence and share of right ones, over ten equal bins."""
    ece_by_chance: Interval
    """What it is if every confidence is true, with 95 % of such cases: few labels leave a distance by chance."""
    brier: Interval
    """Mean square of confidence minus outcome."""
    constant_brier: float
    """What the share of right labels would get, said of every label."""
    bins: tuple[Bin, ...]
    """Those that are not empty."""


def reliability(
    confidence: Numbers,
    right: Numbers,
    units: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Reliability:
    """(n,) probabilities and (n,) outcomes, n at least 1.

    `units` (n,) says whose labels they are: those of one unit are drawn together, or their likeness would make the
    intervals too narrow. Each label is a unit of its own without it.
    """
    rng = np.random.default_rng(seed)
    n = len(right)
    _, place = np.unique(np.arange(n) if units is None else units, return_inverse=True)
    n_units = int(place.max()) + 1
    weights = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=resamples)[:, place].astype(np.float64)
    aside = 100 * tail(n_units)

    def interval(value: float, again: Numbers) -> Interval:
        low, high = np.percentile(again, [aside, 100 - aside])
        return Interval(value, float(low), float(high))

    by_chance = _ece(confidence, (rng.random((resamples, n)) < confidence).astype(np.float64))
    squares = (confidence - right) ** 2
    return Reliability(
        n,
        float(right.mean()),
        interval(float(_ece(confidence, right)), _ece(confidence, right, weights)),
        Interval(float(by_chance.mean()), *(float(edge) for edge in np.percentile(by_chance, [2.5, 97.5]))),
        interval(float(squares.mean()), weights @ squares / weights.sum(axis=1)),
        float(((right.mean() - right) ** 2).mean()),
        tuple(_bins(confidence, right)),
    )


def _place(confidence: Numbers) -> npt.NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _ece(confidence: Numbers, right: Numbers, weights: Numbers | None = None) -> Numbers:
    """(n,), (..., n) and weights (..., n) -> (...)."""
    inside = np.eye(BINS)[_place(confidence)]  # (n, bins)
    weights = np.ones_like(right) if weights is None else weights
    gaps = (weights * (confidence - right)) @ inside
    return np.asarray(np.abs(gaps).sum(axis=-1) / weights.sum(axis=-1), np.float64)


def _bins(confidence: Numbers, right: Numbers) -> list[Bin]:
    place, found = _place(confidence), []
    for number in range(BINS):
        inside = place == number
        if n := int(inside.sum()):
            k = float(right[inside].sum())
            share = Interval(k / n, *wilson(k, n))
            found.append(Bin(number / BINS, (number + 1) / BINS, n, float(confidence[inside].mean()), share))
    return found
