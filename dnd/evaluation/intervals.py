"""95 % intervals over units, and tests of paired differences.

* Shares (every value 0 or 1): Wilson's interval. The bootstrap's is far too narrow near 0 and 1: 12 of 12 would be
  [1, 1], and of 9 in 10 it holds the truth in two thirds of the cases.
* Other means, and medians: the bootstrap's expanded percentiles (Hesterberg, 2015), which make up for few units as
  Student's t does.
* Differences of paired 0 and 1: Bonett and Price's interval (2012) and McNemar's exact test. Other paired differences:
  the bootstrap and the paired t-test. Holm's correction where several are tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Statistic = Literal["mean", "median"]
FEW = 30
"""Below so many units an interval of other values than shares is rough."""
_Z = 1.959964


def tidy(value: float) -> float | None:
    """Six significant digits; None for NaN, which JSON has not."""
    return None if np.isnan(value) else float(f"{value:.6g}")


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval over units."""

    value: float
    low: float
    high: float
    n: int
    """Units it is taken over."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {**{name: tidy(getattr(self, name)) for name in ("value", "low", "high")}, "n": self.n}


NOTHING = Estimate(np.nan, np.nan, np.nan, 0)


def is_share(values: Floats) -> bool:
    """Whether they are all 0 or 1; NaN does not count."""
    return bool((np.isnan(values) | (values == 0) | (values == 1)).all())


def estimates(values: Floats, statistics: Sequence[Statistic], seed: int = 0, resamples: int = 2000) -> list[Estimate]:
    """(n, k): the mean or median of each column over its units that are not NaN.

    Units are drawn with replacement, the same draws for every column. The draws depend on the seed alone, and on
    the order of the units only as far as chance goes.
    """
    found = bootstrap(values, statistics, seed, resamples)
    for i, statistic in enumerate(statistics):
        if statistic == "mean" and found[i].n and is_share(values[:, i]):
            low, high = wilson(float(np.nansum(values[:, i])), found[i].n)
            found[i] = Estimate(found[i].value, low, high, found[i].n)
    return found


def wilson(k: float, n: float) -> tuple[float, float]:
    """Wilson's interval of the share k / n, which is sound for few and for shares near 0 or 1."""
    share = k / n
    middle = (share + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    reach = _Z / (1 + _Z * _Z / n) * float(np.sqrt(share * (1 - share) / n + _Z * _Z / (4 * n * n)))
    # At 0 of n and n of n it ends exactly there, but for rounding.
    return 0.0 if k == 0 else middle - reach, 1.0 if k == n else middle + reach


def bootstrap(values: Floats, statistics: Sequence[Statistic], seed: int = 0, resamples: int = 2000) -> list[Estimate]:
    """`estimates`, all by expanded percentiles."""
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
    found = []
    for i, statistic in enumerate(statistics):
        column = values[present[:, i], i]
        if not len(column):
            found.append(NOTHING)
            continue
        aside = tail(len(column))
        low, high = np.nanpercentile(draws[:, i], [100 * aside, 100 * (1 - aside)])
        value = column.mean() if statistic == "mean" else np.median(column)
        found.append(Estimate(float(value), float(low), float(high), len(column)))
    return found


def tail(n: int) -> float:
    """The share of draws to leave out on each side: less than 0.025, as a bootstrap's spread is too small by
    sqrt((n - 1) / n) and knows nothing of Student's t."""
    from scipy import stats  # type: ignore[import-untyped]

    if n < 2:
        return 0.0
    return float(stats.norm.sf(np.sqrt(n / (n - 1)) * stats.t.isf(0.025, n - 1)))


def paired(one: Floats, other: Floats, seed: int = 0, resamples: int = 2000) -> tuple[Estimate, float]:
    """(n,) each -> the mean of one - other over the units that both have, and the p of no difference."""
    both = ~(np.isnan(one) | np.isnan(other))
    if not both.any():
        return NOTHING, 1.0
    apart = (one - other)[both]
    if not (is_share(one[both]) and is_share(other[both])):
        return bootstrap(apart[:, None], ["mean"], seed, resamples)[0], _t_test(apart)
    n, more, less = len(apart), int((apart > 0).sum()), int((apart < 0).sum())
    plus, minus = (more + 1) / (n + 2), (less + 1) / (n + 2)
    reach = _Z * float(np.sqrt((plus + minus - (plus - minus) ** 2) / (n + 2)))
    low, high = max(-1.0, plus - minus - reach), min(1.0, plus - minus + reach)
    return Estimate((more - less) / n, low, high, n), mcnemar(more, less)


def mcnemar(more: int, less: int) -> float:
    """The exact two-sided p of McNemar's test, from how many pairs differ one way and the other."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    return float(binomtest(more, more + less).pvalue) if more + less else 1.0


def _t_test(apart: Floats) -> float:
    """The two-sided p of the paired t-test; of the sign test where all differences are equal."""
    from scipy.stats import ttest_1samp

    if np.ptp(apart) < 1e-12:
        return 1.0 if abs(apart[0]) < 1e-12 else min(1.0, 2 * 0.5 ** len(apart))
    return float(ttest_1samp(apart, 0.0).pvalue)


def holm(chances: Sequence[float]) -> list[float]:
    """Holm's correction of p values that are tested together, in their order."""
    found, least = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda i: chances[i])):
        least = max(least, min(1.0, (len(chances) - rank) * chances[place]))
        found[place] = least
    return found


def _weighted_medians(values: Floats, counts: npt.NDArray[np.float32]) -> Floats:
    """The median of `values` (n,), each repeated as often as `counts` (B, n) says: (B,)."""
    kept = ~np.isnan(values)
    order = np.argsort(values[kept], kind="stable")
    ordered, running = values[kept][order], counts[:, kept][:, order].cumsum(axis=1)
    if not len(ordered):
        return np.full(len(counts), np.nan)
    total: Any = running[:, -1:]
    lower = (running >= np.ceil(total / 2)).argmax(axis=1)
    upper = (running >= np.floor(total / 2) + 1).argmax(axis=1)
    found = (ordered[lower] + ordered[upper]) / 2
    return np.asarray(np.where(total[:, 0] > 0, found, np.nan), np.float64)
