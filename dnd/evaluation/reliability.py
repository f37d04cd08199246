"""Do confidences mean what they say? Figures of probabilities against what turned out right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnd.evaluation.intervals import wilson

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
    brier: Interval
    """Mean square of confidence minus outcome."""
    constant_brier: float
    """What the share of right labels would get, said of every label."""
    bins: tuple[Bin, ...]
    """Those that are not empty."""


def reliability(confidence: Numbers, right: Numbers, seed: int = 0, resamples: int = 2000) -> Reliability:
    """(n,) probabilities and (n,) outcomes, n at least 1."""
    rng = np.random.default_rng(seed)
    n = len(right)
    draws = [rng.integers(0, n, n) for _ in range(resamples)]

    def interval(value: float, again: list[float]) -> Interval:
        low, high = np.percentile(again, [2.5, 97.5])
        return Interval(value, float(low), float(high))

    return Reliability(
        n,
        float(right.mean()),
        interval(_ece(confidence, right), [_ece(confidence[d], right[d]) for d in draws]),
        interval(_brier(confidence, right), [_brier(confidence[d], right[d]) for d in draws]),
        _brier(np.full(n, right.mean()), right),
        tuple(_bins(confidence, right)),
    )


def _brier(confidence: Numbers, right: Numbers) -> float:
    return float(((confidence - right) ** 2).mean())


def _place(confidence: Numbers) -> npt.NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _ece(confidence: Numbers, right: Numbers) -> float:
    gaps = np.bincount(_place(confidence), weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def _bins(confidence: Numbers, right: Numbers) -> list[Bin]:
    place, found = _place(confidence), []
    for number in range(BINS):
        inside = place == number
        if n := int(inside.sum()):
            k = float(right[inside].sum())
            share = Interval(k / n, *wilson(k, n))
            found.append(Bin(number / BINS, (number + 1) / BINS, n, float(confidence[inside].mean()), share))
    return found


def risk_coverage(confidence: Numbers, right: Numbers) -> list[tuple[float, float, float]]:
    """(least confidence, share of units that keep their label, share of those labels that is right), most demanding
    first; equal confidences go together."""
    order = np.argsort(-confidence, kind="stable")
    ordered, hits = confidence[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
    return [(float(ordered[i]), (i + 1) / len(right), float(hits[i] / (i + 1))) for i in last]
