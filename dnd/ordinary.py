"""How a unit usually behaves: its activations on the random sample of the probing set, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_BINS = 24


@dataclass(frozen=True)
class Ordinary:
    """A histogram with bins of equal width from `low` to `high`, and two quantiles."""

    n: int
    """Finite activations."""
    low: float
    high: float
    median: float
    p95: float
    counts: tuple[int, ...]
    """Of all in one bin where the activations are equal."""


def ordinary(values: npt.NDArray[np.float32]) -> Ordinary | None:
    """Of the activations (n,); None where none is finite."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return None
    low, high = float(finite.min()), float(finite.max())
    counts = np.histogram(finite, _BINS, (low, high))[0] if high > low else np.array([finite.size])
    median, p95 = np.quantile(finite, [0.5, 0.95])
    return Ordinary(finite.size, _short(low), _short(high), _short(median), _short(p95), tuple(counts.tolist()))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
