"""What a run found of a unit: a line of labels.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import numpy.typing as npt

from dnd.api import Label, Picture, Unit
from dnd.exemplar import Exemplar
from dnd.ordinary import Ordinary


@dataclass(frozen=True)
class Finding:
    """A unit's label with all that led to it."""

    label: Label
    exemplars: tuple[Exemplar, ...] = ()
    captions: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    drives: tuple[float, ...] = ()
    """Per candidate: see `dnd.labels.drive`."""
    images: tuple[tuple[Picture, ...], ...] = ()
    activations: npt.NDArray[np.float32] | None = None
    """(n_concepts, n_images)."""
    dropped: Mapping[str, str] = field(default_factory=dict)
    """Candidates that could not be judged, and why; they are not among `concepts`."""
    sample: Ordinary | None = None
    """The unit's activations on the random sample."""
    groups: tuple[int, ...] = ()
    """Of each exemplar, where they were put into groups."""
    groups_of_concepts: tuple[tuple[int, ...], ...] = ()
    """Which groups each candidate came from."""
    unanswered: Mapping[int, str] = field(default_factory=dict)
    """Groups that gave no candidates where others did, and why."""


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
