"""One unit with its evidence: what a run writes as a line of labels.jsonl, and all that is read from one.

In memory numbers are as they were computed; as JSON, scores have four decimals and activations four digits. Keys that
are not known are ignored, so that files of other versions can be read.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    Field,
    PlainSerializer,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from dnd.api import Box, Label, Unit
from dnd.errors import DamagedError, UsageError
from dnd.results.verdict import Verdict
from dnd.text import suggest

if TYPE_CHECKING:
    from PIL.Image import Image

    from dnd.store.images import Store


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _finite(box: Box) -> Box:
    if not all(map(math.isfinite, box)):
        raise ValueError("a box without end")
    return box


def _short_edges(edges: Sequence[float]) -> list[float]:
    return [round(edge, 4) for edge in edges]


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""It becomes a part of a path."""
Count = Annotated[int, Field(ge=0, lt=2**31)]
Edges = Annotated[Box, AfterValidator(_finite), PlainSerializer(_short_edges, when_used="json")]
Score = Annotated[float, PlainSerializer(lambda value: round(value, 4), when_used="json")]
Activation = Annotated[float, PlainSerializer(_short, when_used="json")]


class _Part(BaseModel, frozen=True, strict=True, populate_by_name=True, ser_json_inf_nan="constants"):
    optional: ClassVar[frozenset[str]] = frozenset()
    """Keys that are left out where they are empty."""

    @model_serializer(mode="wrap")
    def _without_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {key: one for key, one in found.items() if key not in self.optional or one not in (None, "", (), [])}


class ScoredConcept(_Part):
    """A concept of a label."""

    optional = frozenset({"confidence"})

    concept: str
    score: Score
    confidence: Score | None = None
    """The probability that it is right, where the run has a calibration."""


class ActivationMap(_Part):
    """A unit's map on an image, small: to be shown, not computed with."""

    shape: tuple[Annotated[int, Field(ge=1, le=64)], Annotated[int, Field(ge=1, le=64)]]
    """Height and width."""
    frame: Edges
    """Its place in the source image; see `dnd.target.geometry.Geometry.frame`."""
    cells: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$", max_length=8192)]
    """Base64 of a byte per cell, row by row: 0 for the map's lowest value, 255 for its highest."""

    @classmethod
    def of(cls, cells: npt.NDArray[np.uint8], frame: Box) -> Self:
        """From cells (h, w)."""
        height, width = cells.shape
        return cls(shape=(height, width), frame=frame, cells=base64.b64encode(cells.tobytes()).decode())


class StoredImage(_Part):
    """An image of the store with the unit's pooled activation on it: a synthetic one, or an exemplar."""

    digest: Digest = Field(alias="image")
    activation: Activation

    def __repr__(self) -> str:
        return f"<image {self.digest[:8]}: activation {self.activation:.4g}>"


class Exemplar(StoredImage):
    """A probing image, or a crop of one, that activates the unit."""

    optional = frozenset({"view", "boxes", "map"})

    source: str
    """Name of the probing image."""
    box: Edges | None = None
    """The crop in fractions of the source; None for the whole image."""
    caption: str | None = None
    view: Digest | None = None
    """The whole source, at most 512 pixels wide and high, where this is a crop."""
    boxes: tuple[Edges, ...] = ()
    """All boxes that the unit's attention gave in the source, largest first."""
    map: ActivationMap | None = None
    """The unit's map on the source; None where there is none or it was not needed."""

    def __repr__(self) -> str:
        return f"<exemplar {self.source}{' (crop)' if self.box else ''}: activation {self.activation:.4g}>"


class Candidate(_Part):
    """A concept that was considered for a unit."""

    optional = frozenset({"score", "bound", "auc", "control_auc", "images"})

    concept: str
    score: Score | None = None
    """None where it was not judged, as for `auc`."""
    bound: Score | None = None
    """What it could score at best, where that decided that it gets no more images (`images.early_stopping`)."""
    auc: Score | None = Field(default=None, validation_alias=AliasChoices("auc", "drive"))
    """`dnd.api.auc` of its images against the baseline. Files of 0.1.0 call it `drive`."""
    control_auc: Score | None = None
    """The same against the images of other units' labels, the median over these; None where there are too few."""
    images: tuple[StoredImage, ...] = ()
    """Synthetic ones, in the order of their seeds."""

    def __repr__(self) -> str:
        score = "not judged" if self.score is None else f"score {self.score:.4g}"
        return f"<candidate {self.concept!r}: {score}, {len(self.images)} images>"


class SampleImage(StoredImage):
    """An image of the random sample."""

    quantile: float
    """Share of the sample on which the unit is weaker, 0..1."""


class Baseline(_Part):
    """The unit's activations on a random sample of the probing set: a histogram with bins of equal width from `low`
    to `high`, two quantiles, and some of the images."""

    optional = frozenset({"cells", "images"})

    n: Count
    """Finite activations."""
    low: float
    high: float
    median: float
    p95: float
    counts: tuple[Count, ...]
    """Of all in one bin where the activations are equal."""
    cells: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")] = ""
    """Base64 of a byte per image of the sample, in the run's one order: 0 for `low`, 255 for `high`. Units can be
    correlated by it."""
    images: tuple[SampleImage, ...] = ()
    """At several quantiles, weakest first."""

    def __repr__(self) -> str:
        return f"<baseline of {self.n} images: median {self.median:.4g}, 95 % below {self.p95:.4g}>"


class Dropped(_Part):
    """A candidate that could not be judged."""

    concept: str
    reason: str


class UnitResult(_Part):
    """A unit's label with all that led to it."""

    optional = frozenset({"sample", "density", "dropped", "meanings", "history", "verdict"})

    layer: Annotated[str, Field(max_length=1000)]
    index: Count = Field(alias="unit")
    status: Literal["labelled", "uninterpretable", "failed"]
    labels: Annotated[tuple[ScoredConcept, ...], Field(max_length=3)] = ()
    """Best first."""
    reason: str = ""
    """Why there is no label."""
    exemplars: tuple[Exemplar, ...] = ()
    """Strongest first."""
    candidates: tuple[Candidate, ...] = ()
    baseline: Baseline | None = Field(default=None, alias="sample")
    density: Activation | None = None
    """Of a latent of a sparse autoencoder: the share of the probing images on which it fires."""
    dropped: tuple[Dropped, ...] = ()
    meanings: tuple[str, ...] = ()
    """Labels that it takes together to explain the exemplars; the label alone where it is one. Of the method refine."""
    history: tuple[tuple[str, ...], ...] = ()
    """What they were before each of its rounds."""
    verdict: Verdict | None = None
    """On the first label; None where it was not verified."""
    _store: Store | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_a_label(self) -> Self:
        if fault := self.label.fault():
            raise ValueError(fault)
        return self

    @property
    def meaning(self) -> str:
        """The meanings in a line: "red | heart"."""
        return " | ".join(self.meanings)

    @classmethod
    def of(cls, label: Label, **evidence: Any) -> Self:
        """A label with its evidence: the other fields, by name."""
        sure = label.confidences or (None,) * len(label.labels)
        labels = tuple(
            ScoredConcept(concept=concept, score=float(score), confidence=confidence)
            for (concept, score), confidence in zip(label.labels, sure, strict=True)
        )
        unit, status = label.unit, label.status
        return cls(
            layer=unit.layer,
            index=unit.index,
            status=status,  # type: ignore[arg-type]  # checked like a file's
            labels=labels,
            reason=label.reason,
            **evidence,
        )

    @property
    def unit(self) -> Unit:
        return Unit(self.layer, self.index)

    @property
    def label(self) -> Label:
        """Its line of labels.csv."""
        sure = tuple(one.confidence for one in self.labels if one.confidence is not None)
        return Label(self.unit, self.status, tuple((one.concept, one.score) for one in self.labels), self.reason, sure)

    @property
    def concept(self) -> str:
        """The first label, or "" where the unit has none."""
        return self.labels[0].concept if self.status == "labelled" else ""

    @property
    def best(self) -> Candidate | None:
        """The candidate that came first, if its images are known."""
        first = self.labels[0].concept if self.labels else ""
        return next((one for one in self.candidates if one.concept == first), None)

    def with_images(self, store: Store) -> Self:
        """The same, whose images can be opened from a store."""
        found = self.model_copy()
        found._store = store
        return found

    def image(self, shown: StoredImage) -> Image:
        """An exemplar or a synthetic image, RGB. Raises UsageError where the run's store no longer has it."""
        try:
            if self._store is None:
                raise DamagedError("the unit was not read from a run folder")
            return self._store.picture(shown.digest).open()
        except DamagedError as error:
            raise UsageError(
                f"cannot read an image: {error}", "Set DND_STORE to the run's store, or run again."
            ) from error

    def images(self, concept: str | None = None, *, least: int = 224) -> list[Image]:
        """Its exemplars, strongest first; or the synthetic images of a candidate. Smaller ones, such as crops, are
        enlarged to `least` pixels along the longer edge (0: as they are). Raises UsageError like `image`, and for a
        concept that is no candidate."""
        shown: tuple[StoredImage, ...] = self.exemplars
        if concept is not None:
            known = {one.concept: one.images for one in self.candidates}
            if concept not in known:
                raise UsageError(f"{self.unit} has no candidate {concept!r}", suggest(concept, known))
            shown = known[concept]
        return [_enlarged(self.image(one), least) for one in shown]

    def __repr__(self) -> str:
        return f"<{self.unit}: {self.concept or self.status}>"

    def _repr_html_(self) -> str:
        from dnd.results.notebook import Figure, unit_html

        exemplars = [
            Figure(partial(self.image, one), one.source, one.box is not None, one.caption, one.activation)
            for one in self.exemplars
        ]
        best = self.best
        synthetic = [
            Figure(partial(self.image, one), best.concept, False, "", one.activation)
            for one in sorted(best.images if best else (), key=lambda one: -one.activation)
            if best
        ]
        return unit_html(self.label, exemplars, synthetic, self.verdict)


def _enlarged(image: Image, least: int) -> Image:
    grow = least / max(image.size)
    return image if grow <= 1 else image.resize((round(image.width * grow), round(image.height * grow)))


_BINS = 24
_QUANTILES = (0.1, 0.5, 0.75, 0.9, 0.95, 0.99)


def baseline(values: npt.NDArray[np.float32], digests: Sequence[str] = ()) -> Baseline | None:
    """Of the activations (n,) on a sample with these images; None where no activation is finite."""
    is_finite = np.isfinite(values)
    finite = values[is_finite].astype(np.float64)
    if not finite.size:
        return None
    low, high = float(finite.min()), float(finite.max())
    counts = np.histogram(finite, _BINS, (low, high))[0] if high > low else np.array([finite.size])
    median, p95 = np.quantile(finite, [0.5, 0.95])
    scaled = np.where(is_finite, values.astype(np.float64) - low, 0) / (high - low if high > low else 1.0)
    return Baseline(
        n=finite.size,
        low=_short(low),
        high=_short(high),
        median=_short(median),
        p95=_short(p95),
        counts=tuple(counts.tolist()),
        cells=base64.b64encode(np.rint(scaled * 255).astype(np.uint8).tobytes()).decode(),
        images=_at_quantiles(values, digests) if digests else (),
    )


def _at_quantiles(values: npt.NDArray[np.float32], digests: Sequence[str]) -> tuple[SampleImage, ...]:
    """The image at each of `_QUANTILES` of the finite activations, each once."""
    order = [int(place) for place in np.argsort(values, kind="stable") if np.isfinite(values[place])]
    places = {order[round(quantile * (len(order) - 1))]: quantile for quantile in reversed(_QUANTILES)}
    return tuple(
        SampleImage(digest=digests[place], activation=float(values[place]), quantile=quantile)
        for place, quantile in reversed(places.items())
    )
