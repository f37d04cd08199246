"""A line of labels.jsonl (dnd/results/write.py writes it): one unit with its evidence, checked; unknown keys are
ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from dnd.api import Label, Unit

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""It becomes a part of a path."""
Count = Annotated[int, Field(ge=0, lt=2**31)]
Edge = Annotated[float, Field(allow_inf_nan=False)]
Edges = tuple[Edge, Edge, Edge, Edge]
"""Left, top, right, bottom in fractions of an image."""


class _Part(BaseModel, frozen=True, strict=True): ...


class Named(_Part):
    """A concept of a label."""

    concept: str
    score: float
    confidence: float | None = None


class Map(_Part):
    """An activation map: see `dnd.target.attention`."""

    shape: tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]]
    frame: Edges
    cells: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=8192)]


class Shown(_Part):
    """An image of the store: a synthetic one, or an exemplar."""

    digest: Digest = Field(alias="image")
    activation: float


class Exemplar(Shown):
    source: str
    """Name of the probing image."""
    box: Edges | None = None
    """None for a whole image."""
    caption: str | None = None
    view: Digest | None = None
    """Of the whole source, where this is a crop."""
    boxes: tuple[Edges, ...] = ()
    map: Map | None = None


class Candidate(_Part):
    """A concept that was considered for a unit."""

    concept: str
    score: float | None = None
    """None where it was not judged, as for `drive`."""
    drive: float | None = None
    images: tuple[Shown, ...] = ()
    """Synthetic ones, in the order of their seeds."""


class Sample(_Part):
    """See `dnd.ordinary`."""

    n: Count
    low: float
    high: float
    median: float
    p95: float
    counts: tuple[Count, ...]


class Dropped(_Part):
    """A candidate that could not be judged."""

    concept: str
    reason: str


class Record(_Part):
    """One unit."""

    layer: Annotated[str, Field(max_length=1000)]
    index: Count = Field(alias="unit")
    status: Literal["labelled", "uninterpretable", "failed"]
    labels: Annotated[tuple[Named, ...], Field(max_length=3)]
    reason: str
    exemplars: tuple[Exemplar, ...]
    """Strongest first."""
    candidates: tuple[Candidate, ...]
    sample: Sample | None = None
    dropped: tuple[Dropped, ...] = ()

    @model_validator(mode="after")
    def _has_its_label(self) -> Record:
        if self.status == "labelled" and not self.labels:
            raise ValueError("a labelled unit without a label")
        return self

    @property
    def unit(self) -> Unit:
        return Unit(self.layer, self.index)

    @property
    def label(self) -> Label:
        """As `dnd.describe` gave it."""
        sure = tuple(one.confidence for one in self.labels if one.confidence is not None)
        return Label(self.unit, self.status, tuple((one.concept, one.score) for one in self.labels), self.reason, sure)

    @property
    def concept(self) -> str:
        """The label given, or nothing."""
        return self.labels[0].concept if self.status == "labelled" else ""

    @property
    def best(self) -> Candidate | None:
        """The candidate that came first, if its images are known."""
        first = self.labels[0].concept if self.labels else ""
        return next((one for one in self.candidates if one.concept == first), None)
