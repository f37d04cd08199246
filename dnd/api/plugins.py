"""The kinds of plugin: a class each, with the methods that the core calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pluggy
import pydantic

from dnd.api.records import Bound, Evidence, Grading, ImageRequest, Label, SummaryRequest
from dnd.api.settings import Config
from dnd.errors import DndError, PluginError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

API_VERSION = 1
"""Raised when an interface below changes in a way that breaks plugins."""

hookimpl = pluggy.HookimplMarker("dnd")


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


class Plugin(ABC):
    """What every kind has: a name, settings, and a constructor that costs nothing."""

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports when it is used, beyond dnd's own: looked for before any work starts, and refused where
    they are older than its distribution asks for (`transformers>=5.17` among its extras)."""
    Config: ClassVar[type[pydantic.BaseModel]] = Config
    """Settings, a subclass of `dnd.api.Config`. A field of type `ModelName` names a model in models.lock, one of type
    `ProbingFolder` is the run's probing folder unless the run file says another."""
    environment: ClassVar[Mapping[str, str]] = {}
    """Environment variables that its libraries read as they are imported: set before it is made, where the user has not
    set them."""

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
    spreads: ClassVar[bool] = True
    """Whether the core may run several of it on a CPU, each in a process of its own, where its model is small and there
    is much to do. False for a server, or where loading it costs much."""

    def memory(self) -> int | None:
        """Bytes that it needs on its device, weights and work; None lets the core guess it from the sizes of its
        models' files. Raises ModelError where a model is not here."""
        return None

    def chosen(self) -> Mapping[str, Any]:
        """What automatic settings come to on this device, by the setting's name: for run.json and, but for those in
        `Config.unkeyed`, for the stage's key. Asked before `load` and after `close`: what is keyed must not change."""
        return {}

    def used(self) -> Mapping[str, int]:
        """What it has used up since it was made, such as {"tokens": 1234}: for run.json and `dnd bench`."""
        return {}

    def borrow(self, lender: Backend) -> bool:
        """Called once before any `load`: from now on, work with what `lender`, the backend of the stage before, has
        loaded, whenever it is loaded. Where that is possible, True: the core then closes the lender after this
        backend's stage, and before any other model is loaded."""
        return False

    def load(self) -> None:
        """Heavy imports and weights go here, not in the constructor."""

    def close(self) -> None:
        """Give all memory back. Safe to call twice, and after a `load` that failed."""

    def __enter__(self) -> Self:
        try:
            self.load()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Captioner(Backend):
    @abstractmethod
    def caption(self, images: Sequence[Image]) -> list[str]:
        """One caption per RGB image. An image's caption must not depend on the batch around it."""

    def log_probabilities(self, requests: Sequence[tuple[Image, Sequence[str]]]) -> list[list[float]]:
        """For each RGB image, the natural logarithm of the chance that it is captioned by each text, the end of the
        text included. Optional: some methods need it."""
        raise PluginError(f"the captioner {self.name!r} does not give the probability of a caption")

    @property
    def gives_probabilities(self) -> bool:
        """Whether it has `log_probabilities`."""
        return type(self).log_probabilities is not Captioner.log_probabilities


class Summarizer(Backend):
    reads: ClassVar[Literal["captions", "images"]] = "captions"
    """With "images" it is given the exemplars themselves: nothing is captioned, and a run has no captioner."""

    @abstractmethod
    def summarize(self, requests: Sequence[SummaryRequest]) -> list[list[str]]:
        """One to `n_concepts` distinct candidate concepts per request: lower case, 1-5 words, likeliest first."""


class Generator(Backend):
    @abstractmethod
    def generate(self, requests: Sequence[ImageRequest]) -> Sequence[Image | None]:
        """One RGB image per request, which depends on nothing but the request; None where there are no more images of
        the concept than those of lower numbers. A concept with few images is not scored."""

    def image_size(self) -> tuple[int, int] | None:
        """(width, height) in pixels of its images, at most, for `dnd doctor`; None where that is not known."""
        return None


class Scorer(Backend):
    needs_images: ClassVar[bool] = True
    """Without, no synthetic images are made: the evidence has none, a run has no generator, and its units are never
    called uninterpretable for a low AUC."""

    @abstractmethod
    def score(self, evidence: Sequence[Evidence]) -> list[list[float]]:
        """A finite score per candidate of each unit; higher is better."""

    def bound(self, evidence: Sequence[Evidence]) -> list[list[Bound]]:
        """What each candidate of each unit can score at best, when some of their images are still to come. Optional:
        with it, a run makes no more images of candidates that cannot become one of a unit's first labels.

        When the first k candidates by bound (of equal ones the earlier first), k up to three, are not open, then they
        must be the first k by `score`, with those scores, whatever the images to come. Bounds that no score can exceed,
        and that are the score itself once nothing can change it, are of this kind."""
        raise PluginError(f"the scorer {self.name!r} gives no bounds")

    def seen(self, evidence: Sequence[Evidence]) -> list[npt.NDArray[np.bool_]]:
        """Of each unit, on which of its exemplars each candidate can be seen: (n_concepts, n_exemplars). Optional: the
        method refine needs it."""
        raise PluginError(
            f"the scorer {self.name!r} does not see candidates in exemplars", "Take one that uses a CLIP."
        )

    @property
    def gives_bounds(self) -> bool:
        """Whether it has `bound`."""
        return type(self).bound is not Scorer.bound

    @property
    def rounds(self) -> Sequence[float]:
        """Shares of a candidate's images, 0..1, after which a run looks whether it needs more."""
        return (0.2, 0.4, 0.6)


class Encoder(Backend):
    @abstractmethod
    def encode(self, items: Sequence[Image | str]) -> list[npt.NDArray[np.float32]]:
        """A vector (d,) of length 1 per RGB image or text, all in one space: their cosine says how alike two are."""


class Target(Plugin):
    """A network under study. The core runs it; no backend does."""

    reads: Mapping[str, Any] = MappingProxyType({})
    """What of [target] says what a unit is, where it differs from the defaults: {"sae": "/a/folder"}, say. Of a run,
    set by the core before `grade`."""

    @abstractmethod
    def build(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        """The module, and what turns an RGB image into its input: a float tensor (C, H, W)."""

    def grade(self, labels: Sequence[Label]) -> Grading | None:
        """Judge the labels where the meaning of this target's units is known; else None."""
        return None

    def shown(self, layer: str, images: ProbingSet) -> Sequence[int]:
        """Units of a layer that stand for what the images show, ascending: the classes of a classifier. For
        `--units shown`; UsageError where that is not known."""
        raise UsageError(f"the target {self.name!r} cannot say which units the images show", "Give --units all.")


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
