"""All that a plugin author imports: `hookimpl`, the interfaces, `Config`, the records, the errors.

A backend is a class with a `name`, a frozen `Config` and one method: a list in, a list of the same length
out, in the same order. Raise `ItemError` for an input that has no valid answer: the core then asks for the
other items one by one, so that only that item fails. Nothing here imports torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, get_args, get_origin

import numpy as np
import numpy.typing as npt
import pluggy
import pydantic

from dnd import api
from dnd.errors import DeviceError, DndError, ItemError, ModelError, PluginError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


__all__ = [
    "API_VERSION",
    "Backend",
    "Box",
    "Captioner",
    "Config",
    "DeviceError",
    "DndError",
    "Evidence",
    "Generator",
    "Grade",
    "Grading",
    "ImageRequest",
    "ItemError",
    "Label",
    "Method",
    "ModelError",
    "ModelName",
    "Picture",
    "Plugin",
    "PluginError",
    "ProbingSet",
    "Runtime",
    "Scorer",
    "Study",
    "Summarizer",
    "SummaryRequest",
    "Target",
    "Unit",
    "UsageError",
    "hookimpl",
]

API_VERSION = 1
"""Raised when an interface below changes in a way that breaks plugins."""

T = TypeVar("T")

hookimpl = pluggy.HookimplMarker("dnd")


class Config(pydantic.BaseModel, extra="forbid", frozen=True, protected_namespaces=()):
    """Base of every plugin's settings: typed, frozen, and strangers are refused."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    """Settings that change no answer, only where and how fast it is found: left out of the stage's key."""


@dataclass(frozen=True)
class _NamesModel:
    """Marks a setting whose value is a name in models.lock."""


ModelName = Annotated[str, _NamesModel()]
"""Type of a setting that names a model: the core then verifies it, plans for it and keys results by its digest."""


@dataclass(frozen=True)
class Runtime:
    """What the core gives to a plugin."""

    device: str
    """ "cpu", "cuda" or "cuda:1"."""
    weights: Callable[[str], Path]
    """A name in models.lock -> its verified local folder; raises ModelError; never the network."""
    devices: tuple[str, ...] = ()
    """All devices that this backend may use, `device` first. Captioners and generators get one each: the core runs
    one of them per device, each in a process of its own."""


# --- records -----------------------------------------------------------------------------------------


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
class SummaryRequest:
    """Ask for what a unit's captions have in common."""

    captions: tuple[str, ...]
    """Strongest exemplar first. None for a summarizer that reads images."""
    n_concepts: int
    seed: int
    images: tuple[Picture, ...] = ()
    """The exemplars, strongest first, for a summarizer that reads images; else none."""


@dataclass(frozen=True)
class ImageRequest:
    """Ask for one image of a concept. The same request gives the same image, whatever the batch around it."""

    concept: str
    seed: int


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
    """Synthetic images of each candidate: n_concepts x n_images."""
    activations: npt.NDArray[np.float32]
    """(n_concepts, n_images): the unit's pooled activation on each of them."""
    sample: tuple[Picture, ...]
    """A random sample of the probing set, the same for every unit of a run."""
    sample_activations: npt.NDArray[np.float32]
    """(n_sample,): the unit's ordinary behaviour."""


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


# --- interfaces --------------------------------------------------------------------------------------


class Plugin(ABC):
    """What every kind has: a name, settings, and a constructor that costs nothing."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports when it is used, beyond dnd's own: looked for before any work starts."""
    Config: ClassVar[type[pydantic.BaseModel]] = Config
    """Settings, a subclass of `dnd.api.Config`. A field of type `ModelName` names a model in models.lock."""

    def __init__(self, config: Any, runtime: Runtime) -> None:
        self.config = config
        self.runtime = runtime

    def check(self) -> Iterable[str | DndError]:
        """What would keep it from working here, found at little cost before any work starts: `dnd doctor` shows it,
        `dnd run` refuses to begin. A `DndError`'s hint is the remedy. Neither models nor `requires` need a look."""
        return ()


class Backend(Plugin):
    """A captioner, summarizer, generator or scorer. `with backend:` loads and closes it."""

    batch_size: int = 16
    """How many items the core hands over in one call; each call's answers are durable before the next."""

    def memory(self) -> int | None:
        """Bytes that it expects to need on its device, weights and work; None lets the core estimate it from the
        weights of its models and settings named `dtype`, `quantization` and `offload` (dnd/runtime/memory.py)."""
        return None

    def chosen(self) -> Mapping[str, Any]:
        """What automatic settings come to on this device, by the setting's name: for run.json and, but for those in
        `Config.unkeyed`, for the stage's key. Asked before `load` and after `close`: what is keyed must not change."""
        return {}

    def used(self) -> Mapping[str, int]:
        """What it has used up since it was made, such as {"tokens": 1234}: for run.json and `dnd bench`."""
        return {}

    def load(self) -> None:
        """Heavy imports and weights go here, not in the constructor."""

    def close(self) -> None:
        """Give all memory back. Safe to call twice, and after a `load` that failed."""

    def __enter__(self) -> Self:
        self.load()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Captioner(Backend):
    @abstractmethod
    def caption(self, images: Sequence[Image]) -> list[str]:
        """One caption per RGB image. An image's caption must not depend on the batch around it."""

    def log_probabilities(self, asked: Sequence[tuple[Image, Sequence[str]]]) -> list[list[float]]:
        """For each RGB image, the natural logarithm of the chance that it is captioned by each text, the end of the
        text included. Optional: some methods need it."""
        raise PluginError(f"the captioner {self.name!r} does not give the probability of a caption")


class Summarizer(Backend):
    reads: ClassVar[Literal["captions", "images"]] = "captions"
    """With "images" it is given the exemplars themselves: nothing is captioned, and a run has no captioner."""

    @abstractmethod
    def summarize(self, requests: Sequence[SummaryRequest]) -> list[list[str]]:
        """One to `n_concepts` distinct candidate concepts per request: lower case, 1-5 words, likeliest first."""


class Generator(Backend):
    @abstractmethod
    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        """One RGB image per request, which depends on nothing but the request."""


class Scorer(Backend):
    needs_images: ClassVar[bool] = True
    """Without, no synthetic images are made: the evidence has none, a run has no generator, and its units are never
    called uninterpretable for a want of drive."""

    @abstractmethod
    def score(self, evidence: Sequence[Evidence]) -> list[list[float]]:
        """A finite score per candidate of each unit; higher is better."""


class Target(Plugin):
    """A network under study. The core runs it; no backend does."""

    @abstractmethod
    def build(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        """The module, and what turns an RGB image into its input: a float tensor (C, H, W)."""

    def grade(self, labels: Sequence[Label]) -> Grading | None:
        """Judge the labels where the meaning of this target's units is known; else None."""
        return None


class ProbingSet(Plugin):
    """The images shown to the target, in an order that never changes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image_name(self, index: int) -> str:
        """A stable, readable name: a relative path, say."""

    @abstractmethod
    def open(self, index: int) -> Image:
        """The image as RGB, upright. Raises OSError or ValueError where it cannot be read.

        One that has more bands may carry them all in `.info["bands"]`, an array (h, w, b) as high and wide as the
        image: the target's preprocess can read them there, of attention crops too."""

    @abstractmethod
    def digest(self) -> str:
        """Names the set's content: it changes when any image does."""

    def label(self, index: int) -> str | None:
        """The image's class, where the set knows it. Optional: `dnd prune` needs it to measure accuracy."""
        return None

    def masks(self, index: int) -> Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]:
        """Where the image shows what: category -> concept -> bool (h, w) over the whole image, of any resolution,
        (1, 1) for a label of the whole image. A category for which the image was not labelled is absent. Optional:
        Network Dissection needs it."""
        return {}


class Study(ABC):
    """The probing pass of one run, for a `Method` to find labels in."""

    units: tuple[Unit, ...]
    """Those to be labelled: neither silent nor broken."""
    probing: ProbingSet
    images: Sequence[int]
    """Indices of the probing images that can be read."""
    seed: int
    failed: dict[Unit, str]
    """Units without a label, and why: a method may add to it."""

    @property
    @abstractmethod
    def sample(self) -> tuple[Picture, ...]:
        """A random sample of the probing set, in a random order; `exemplars.sample` says how many."""

    @abstractmethod
    def exemplars(self, unit: Unit) -> tuple[tuple[Picture, float], ...]:
        """Its exemplars with their pooled activations, strongest first."""

    @abstractmethod
    def captions(self) -> dict[Unit, tuple[str, ...]]:
        """Captions of every unit's exemplars, by the run's captioner; shared with other methods."""

    @abstractmethod
    def activations(self, layer: str) -> npt.NDArray[np.float32]:
        """Pooled activations of all units of a layer: (n_images, n_units), rows as in `images`; mapped from disk."""

    @abstractmethod
    def map_shape(self, layer: str) -> tuple[int, ...]:
        """(h, w) of its units' activation maps, or () where they have none."""

    @abstractmethod
    def maps(self, units: Sequence[Unit], name: str) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Activation maps of some units of one layer over all images, in order: batches of image indices with
        (n_images of the batch, n_units, h, w). `name` is what the progress bar says. Nothing of it is stored."""

    @abstractmethod
    def frame(self, index: int) -> Box | None:
        """What the target sees of a probing image, in fractions of its width and height; None where that is not a
        rectangle."""

    @abstractmethod
    def backend(self, kind: str) -> tuple[Any, str]:
        """The run's backend of a kind named in the method's `uses`, not yet loaded, and the key of its answers."""

    @abstractmethod
    def digest_of_model(self, name: str) -> str:
        """Names the weights behind a name in models.lock."""

    @abstractmethod
    def key_of(self, *parts: str) -> str:
        """A key for an item that consists of several texts."""

    @abstractmethod
    def arrays(
        self,
        name: str,
        parts: Mapping[str, object],
        items: Mapping[str, T],
        backend: Backend,
        work: Callable[[Sequence[T]], Sequence[npt.NDArray[np.float32]]],
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Computes a float32 vector per item, once and for all: batches are kept in the store, under progress.

        `parts` are what the answers depend on besides an item's key. The backend is loaded only if there is work,
        and closed after. Raises DndError where an item fails.
        """


class Method(Plugin):
    """A way from the probing pass to labels, in place of the core's own, `dnd`."""

    uses: ClassVar[tuple[str, ...]] = ()
    """Kinds of backend that it asks its study for: a run needs no others."""

    @abstractmethod
    def describe(self, study: Study) -> Iterable[Label]:
        """A label of every unit in `study.units`, in their order."""


def model_names(config: pydantic.BaseModel) -> list[str]:
    """The models that a plugin's settings name: values of type `dnd.api.ModelName`, optional or not."""
    found = []
    for key, info in type(config).model_fields.items():
        value = getattr(config, key)
        marked = any(_is_marker(part) for part in info.metadata) or _names_model(info.annotation)
        if isinstance(value, str) and marked:
            found.append(value)
    return found


def _is_marker(value: object) -> bool:
    return value in get_args(api.ModelName)[1:]


def _names_model(annotation: object) -> bool:
    """Whether ModelName is this type, or a part of it."""
    if get_origin(annotation) is Annotated and any(_is_marker(part) for part in get_args(annotation)[1:]):
        return True
    return any(_names_model(part) for part in get_args(annotation))


N_LABELS = 3
"""How many concepts a unit's label gives at most."""


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
