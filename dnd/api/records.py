"""What goes into plugins and comes out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

N_LABELS = 3
"""How many concepts a unit's label gives at most."""
STATUSES = ("labelled", "uninterpretable", "failed")


@dataclass(frozen=True, order=True, slots=True)
class Unit:
    """One channel of a conv layer, one feature of an MLP or ViT layer, one logit."""

    layer: str
    """Dotted name from `named_modules()`."""
    index: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.index}"


@dataclass(frozen=True)
class Picture:
    """An image in the store. `digest` names its content: equal digests are equal pixels."""

    digest: str
    open: Callable[[], Image] = field(compare=False, repr=False)
    """Reads it from disk: RGB."""


@dataclass(frozen=True)
class JudgedConcept:
    """A candidate of a unit that the target has judged."""

    concept: str
    auc: float
    """`dnd.api.auc` of its images against the unit's baseline activations."""
    seen: float
    """Share of the unit's exemplars on which it can be seen, 0..1."""


@dataclass(frozen=True)
class SummaryRequest:
    """Ask for what a unit's captions have in common."""

    captions: tuple[str, ...]
    """Strongest exemplar first. None for a summarizer that reads images."""
    n_concepts: int
    seed: int
    images: tuple[Picture, ...] = ()
    """The exemplars, strongest first, for a summarizer that reads images; else none."""
    tested: tuple[JudgedConcept, ...] = ()
    """Candidates that were tested already, best first: the captions are those of exemplars that the best leave out."""


@dataclass(frozen=True)
class ImageRequest:
    """Ask for one image of a concept. The same request gives the same image, whatever the batch around it."""

    concept: str
    seed: int
    number: int = 0
    """Which of the concept's images it is, from 0 on: all have other seeds. A generator that shows images it has, and
    makes none, gives another one for each number, and None where it has no more."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of one unit when its candidates are scored."""

    unit: Unit
    exemplars: tuple[Picture, ...]
    """Strongest first."""
    exemplar_activations: npt.NDArray[np.float32]
    """(n_exemplars,) pooled."""
    concepts: tuple[str, ...]
    """The candidates, distinct."""
    images: tuple[tuple[Picture, ...], ...]
    """Synthetic images of each candidate: n_concepts x n_images. Those of a candidate of which the generator has fewer
    are repeated in their order. Fewer of some, the first ones, in `Scorer.bound`."""
    activations: npt.NDArray[np.float32]
    """(n_concepts, n_images): the unit's pooled activation on each of them. NaN for images to come."""
    sample: tuple[Picture, ...]
    """A random sample of the probing set, the same for every unit of a run."""
    sample_activations: npt.NDArray[np.float32]
    """(n_sample,): the unit's ordinary behaviour."""

    def __post_init__(self) -> None:
        """Its arrays cannot be written to: other scorers, and the labels, rest on the same numbers."""
        for name in ("exemplar_activations", "activations", "sample_activations"):
            view = np.asarray(getattr(self, name)).view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __setstate__(self, state: Mapping[str, object]) -> None:
        vars(self).update(state)
        self.__post_init__()  # an array that comes from another process can be written to


class Bound(NamedTuple):
    """What a candidate can score when images are still to come (`dnd.api.Scorer.bound`)."""

    score: float
    """At best; `math.inf` where nothing is known."""
    open: bool
    """Whether images of it to come can change its score."""


@dataclass(frozen=True)
class Label:
    """The answer for one unit, a line of labels.csv."""

    unit: Unit
    status: str
    """ "labelled", "uninterpretable" or "failed"."""
    labels: tuple[tuple[str, float], ...] = ()
    """Up to three concepts with their scores, best first. Also given for "uninterpretable" units in
    labels.jsonl, never in labels.csv."""
    reason: str = ""
    """Why there is no label."""
    confidences: tuple[float, ...] = field(default=(), compare=False)
    """The probability that each of `labels` is right, where the run has a calibration; not in labels.csv."""

    def __repr__(self) -> str:
        shown = self.status
        if self.status == "labelled":
            with suppress(Exception):  # one of a plugin, which may be wrong and has to be shown all the same
                label, score = self.labels[0]
                shown = f"{label}, {score:.3g}"
        return f"<{self.unit}: {shown}>"  # of a list of hundreds, that much can be read

    @property
    def label(self) -> str:
        """The first concept, or "" where the unit has no label."""
        return self.labels[0][0] if self.status == "labelled" else ""

    @property
    def score(self) -> float | None:
        """Of `label`; None where there is none."""
        return self.labels[0][1] if self.status == "labelled" else None

    @property
    def confidence(self) -> float | None:
        """The probability that `label` is right; None without a label or a calibration."""
        return self.confidences[0] if self.status == "labelled" and self.confidences else None

    def fault(self) -> str:
        """What keeps this from being a label, or ""."""
        if self.status not in STATUSES:
            return f"no status is called {self.status!r:.40}"
        if self.status == "labelled" and not self.labels:
            return "a labelled unit without a label"
        if len(self.labels) > N_LABELS:
            return f"{len(self.labels)} concepts, where a label has {N_LABELS} at most"
        return ""


@dataclass(frozen=True)
class Grade:
    """How many labels of one kind of unit are right."""

    kind: str
    right: int
    total: int


@dataclass(frozen=True)
class Grading:
    """Labels judged against a target's known truth."""

    grades: tuple[Grade, ...]
    controls: Mapping[str, float] = field(default_factory=dict)
    """What chance alone gives, by the name of the control: a share, 0..1."""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Held-out figures of each model used, so that a loss can be traced to its stage."""
    wrong: Mapping[str, str] = field(default_factory=dict)
    """unit -> what it should have been, for the units that are wrong."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """unit -> its kind, for all that were judged."""


class Box(NamedTuple):
    """A rectangle in fractions of an image's width and height; 0, 0 is its upper left corner."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def iou(self, other: Box) -> float:
        """Area of the intersection over area of the union."""
        shared = Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        ).area
        return shared / (self.area + other.area - shared) if shared else 0.0


FRAME = Box(0.0, 0.0, 1.0, 1.0)
