"""A method of its own, and the probing pass as it sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from dnd.api.plugins import Plugin, ProbingSet
from dnd.api.records import Box, Label, Picture, Unit

T = TypeVar("T")


class Study(ABC):
    """The probing pass of one run, for a `Method` to find labels in."""

    units: tuple[Unit, ...]
    """Those to be labelled: neither silent nor broken."""
    probing: ProbingSet
    images: Sequence[int]
    """Indices of the probing images that can be read; with `all_activations`, of several equal ones the first."""
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
        """Pooled activations of all units of a layer: (n_images, n_units), rows as in `images`; mapped from disk where
        all images can be read. Only for a method with `all_activations`."""

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
        backend: AbstractContextManager[object],
        work: Callable[[Sequence[Any]], Sequence[npt.NDArray[np.float32]]],
        *,
        batch_size: int | None = None,
        ahead: Callable[[T], object] | None = None,
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Computes a float32 vector per item, once and for all: batches are kept in the store, under progress.

        `parts` are what the answers depend on besides an item's key. `backend` is a Backend, or any context manager
        that holds what `work` needs: it is entered only if there is work. `batch_size` items are handed over in one
        call; without, as many as the backend takes. `ahead` makes of an item what `work` gets of it, by threads while
        the batch before is at work: it opens images, say. Raises DndError where an item fails.
        """


class Method(Plugin):
    """A way from the probing pass to labels, in place of the core's own, `dnd`."""

    uses: ClassVar[tuple[str, ...]] = ()
    """Kinds of backend that it asks its study for: a run needs no others."""
    crops: ClassVar[bool] = True
    """Whether it looks at exemplars. Without, those that are shown beside its labels are the strongest whole images:
    no second pass looks for attention crops, nor for different ones."""
    all_activations: ClassVar[bool] = False
    """Whether it asks for `Study.activations`: the probing pass keeps them then."""

    @abstractmethod
    def describe(self, study: Study) -> Iterable[Label]:
        """A label of every unit in `study.units`, in their order."""
