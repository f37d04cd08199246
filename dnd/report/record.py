"""A line of labels.jsonl as the report reads it: what it needs, checked; all else is left aside."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""It becomes a part of a path."""
Edges = tuple[float, float, float, float]
"""Left, top, right, bottom in fractions of an image."""


class Named(BaseModel):
    """A concept of a label."""

    concept: str
    score: float | None = None
    confidence: float | None = None


class Map(BaseModel):
    """An activation map: see `dnd.attention`."""

    shape: tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]]
    frame: Edges
    cells: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=8192)]


class Exemplar(BaseModel):
    image: Digest
    source: str = ""
    box: Edges | None = None
    activation: float | None = None
    caption: str | None = None
    view: Digest | None = None
    boxes: list[Edges] = []
    map: Map | None = None


class Drawn(BaseModel):
    """A synthetic image."""

    image: Digest
    activation: float | None = None


class Candidate(BaseModel):
    concept: str
    score: float | None = None
    drive: float | None = None
    confidence: float | None = None
    images: list[Drawn] = []


class Sample(BaseModel):
    """See `dnd.ordinary`."""

    n: int
    low: float
    high: float
    median: float
    p95: float
    counts: list[int]


class Dropped(BaseModel):
    """A candidate that could not be judged."""

    concept: str
    reason: str


class Record(BaseModel):
    """One unit."""

    layer: str
    unit: Annotated[int, Field(ge=0)]
    status: str
    labels: list[Named] = []
    confidence: float | None = None
    reason: str = ""
    exemplars: list[Exemplar] = []
    candidates: list[Candidate] = []
    sample: Sample | None = None
    dropped: list[Dropped] = []

    @property
    def label(self) -> str:
        """The label given, or nothing."""
        return self.labels[0].concept if self.status == "labelled" and self.labels else ""

    @property
    def best(self) -> Candidate | None:
        """The candidate that came first, if its images are known."""
        first = self.labels[0].concept if self.labels else ""
        return next((c for c in self.candidates if c.concept == first), None)
