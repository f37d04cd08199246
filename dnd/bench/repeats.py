"""Figures of combinations that were run several times: intervals that hold for other units and for other seeds.

Units and seeds are crossed: each unit has a value with each seed. The variance of the mean is that of the units' means
over n, plus that of the seeds' means over S (as of Owen's pigeonhole bootstrap: rather too large than too small), with
Satterthwaite's degrees of freedom. Shares get Wilson's interval of as many units as have that variance (Korn and
Graubard, 1998), which is sound near 0 and 1. With one seed all is as in `dnd.evaluation.intervals`.
"""

from __future__ import annotations

import numpy as np

from dnd.evaluation.intervals import NOTHING, Estimate, Floats, estimates, is_share, paired, wilson

_Z = 1.959964


def level(values: Floats) -> Estimate:
    """(n_units, n_seeds), NaN where there is no value -> the mean."""
    if values.shape[1] == 1:
        return estimates(values, ["mean"])[0]
    values = values[~np.isnan(values).all(axis=1)]
    if not len(values):
        return NOTHING
    mean, variance, freedom = _moments(values)
    reach = _quantile(freedom)
    if not is_share(values):
        return Estimate(mean, mean - reach * variance**0.5, mean + reach * variance**0.5, len(values))
    n = mean * (1 - mean) / variance * (_Z / reach) ** 2 if variance else float(len(values))
    low, high = wilson(mean * n, n)
    return Estimate(mean, max(0.0, low), min(1.0, high), len(values))


def difference(one: Floats, other: Floats) -> tuple[Estimate, float]:
    """(n_units, n_seeds) each -> the mean of one - other, paired by unit and seed, and the p of no difference."""
    if one.shape[1] == 1:
        return paired(one[:, 0], other[:, 0])
    apart = one - other
    apart = apart[~np.isnan(apart).all(axis=1)]
    if not len(apart):
        return NOTHING, 1.0
    from scipy import stats  # type: ignore[import-untyped]

    mean, variance, freedom = _moments(apart)
    if variance < 1e-24:  # every unit with every seed alike: the sign test over units
        return Estimate(mean, mean, mean, len(apart)), 1.0 if abs(mean) < 1e-12 else min(1.0, 2 * 0.5 ** len(apart))
    reach = _quantile(freedom) * variance**0.5
    p = 2 * float(stats.t.sf(abs(mean) / variance**0.5, freedom))
    return Estimate(mean, mean - reach, mean + reach, len(apart)), p


def _moments(values: Floats) -> tuple[float, float, float]:
    """The mean of (n, S), its variance and the degrees of freedom of that."""
    parts = []
    for axis in (1, 0):
        means = np.nanmean(values, axis=axis)
        if len(means) > 1:
            parts.append((float(np.var(means, ddof=1)) / len(means), len(means) - 1))
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / own for part, own in parts)
    return float(np.nanmean(values)), variance, variance**2 / spread if spread else np.inf


def _quantile(freedom: float) -> float:
    from scipy import stats

    return float(stats.t.isf(0.025, freedom)) if np.isfinite(freedom) else _Z
