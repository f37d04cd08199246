"""What a run found of a unit: a line of labels.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt

from dnd.api import Box, Label, Picture, Unit
from dnd.target.attention import Attention


@dataclass(frozen=True)
class Finding:
    """A unit's label with all that led to it."""

    label: Label
    exemplars: tuple[Exemplar, ...] = ()
    captions: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    drives: tuple[float, ...] = ()
    """Per candidate: see `dnd.pipeline.choose.drive`."""
    images: tuple[tuple[Picture, ...], ...] = ()
    activations: npt.NDArray[np.float32] | None = None
    """(n_concepts, n_images)."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Candidates that could not be judged, and why; they are not among `concepts`."""
    sample: Ordinary | None = None
    """The unit's activations on the random sample."""


class Findings(Sequence[Finding]):
    """One per unit, each put together anew whenever it is asked for: all at once they would fill the memory."""

    def __init__(self, units: Sequence[Unit], find: Callable[[Unit], Finding]) -> None:
        self._units, self._find = units, find

    def __len__(self) -> int:
        return len(self._units)

    @overload
    def __getitem__(self, place: int) -> Finding: ...
    @overload
    def __getitem__(self, place: slice) -> Findings: ...
    def __getitem__(self, place: int | slice) -> Finding | Findings:
        if isinstance(place, slice):
            return Findings(self._units[place], self._find)
        return self._find(self._units[place])


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


@dataclass(frozen=True)
class Exemplar:
    """An image or crop that drives a unit."""

    digest: str
    """In the store."""
    source: str
    """Name of the probing image."""
    box: Box | None
    """The crop in fractions of the source's width and height; None for the whole image."""
    activation: float
    """Pooled."""
    view: str = ""
    """Digest of the whole source, at most 512 pixels wide and high, where this is a crop."""
    boxes: tuple[Box, ...] = ()
    """All boxes that the unit's attention gave in the source, largest first."""
    attention: Attention | None = None
    """The unit's map on the source; None where there is none or it was not needed."""
