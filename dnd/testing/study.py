"""A study in memory, for the tests of a method: four units, each of which responds to one colour."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dnd.api import FRAME, Box, Config, Picture, ProbingSet, Study, Unit
from dnd.testing.fakes import CONCEPTS, images, picture, runtime

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
N_IMAGES, N_EXEMPLARS, N_SAMPLE = 48, 5, 12


class ColouredImages(ProbingSet):
    """`dnd.testing.images`: of four colours in turn, which are their classes."""

    name = "coloured-images"

    def __len__(self) -> int:
        return N_IMAGES

    def image_name(self, index: int) -> str:
        return f"{self.label(index)}/{index:03d}"

    def open(self, index: int) -> Image:
        return images(index + 1)[index]

    def digest(self) -> str:
        return "coloured-images-1"

    def label(self, index: int) -> str:
        return CONCEPTS[index % len(CONCEPTS)]


class FakeStudy(Study):
    """Unit i of `layer` responds to images of the i-th of CONCEPTS, and has no activation map.

    `captions` are those of every unit's exemplars, by its index; without, each names the colour. `backends` are what
    `backend` gives, by kind.
    """

    def __init__(
        self,
        captions: Mapping[int, Sequence[str]] | None = None,
        *,
        layer: str = "layer",
        backends: Mapping[str, object] | None = None,
    ) -> None:
        self.units = tuple(Unit(layer, index) for index in range(len(CONCEPTS)))
        self.probing = ColouredImages(Config(), runtime())
        self.images, self.seed, self.failed = range(N_IMAGES), 0, {}
        self._captions, self._backends = captions, backends or {}

    @property
    def sample(self) -> tuple[Picture, ...]:
        chosen = np.random.default_rng(self.seed).permutation(N_IMAGES)[:N_SAMPLE]
        return tuple(picture(self.probing.open(int(index))) for index in chosen)

    def exemplars(self, unit: Unit) -> tuple[tuple[Picture, float], ...]:
        column = self.activations(unit.layer)[:, unit.index]
        best = np.argsort(-column, kind="stable")[:N_EXEMPLARS]
        return tuple((picture(self.probing.open(int(index))), float(column[index])) for index in best)

    def captions(self) -> dict[Unit, tuple[str, ...]]:
        if self._captions is not None:
            return {unit: tuple(self._captions[unit.index]) for unit in self.units if unit.index in self._captions}
        return {unit: (f"a {colour} picture",) * N_EXEMPLARS for unit, colour in zip(self.units, CONCEPTS, strict=True)}

    def activations(self, layer: str) -> npt.NDArray[np.float32]:
        chance = np.random.default_rng(self.seed)
        shown = np.arange(N_IMAGES)[:, None] % len(CONCEPTS) == np.arange(len(CONCEPTS))
        return np.asarray(2.0 * shown + chance.uniform(0, 0.5, shown.shape), np.float32)

    def map_shape(self, layer: str) -> tuple[int, ...]:
        return ()

    def maps(self, units: Sequence[Unit], name: str) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        raise NotImplementedError("the units of this study have no maps")

    def frame(self, index: int) -> Box | None:
        return FRAME

    def backend(self, kind: str) -> tuple[Any, str]:
        return self._backends[kind], f"key-of-{kind}"

    def digest_of_model(self, name: str) -> str:
        return f"digest-of-{name}"

    def key_of(self, *parts: str) -> str:
        return "\n".join(parts)

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
        """Computed anew at every call, in batches of the size that is asked for."""
        keys = list(items)
        size: int = batch_size or getattr(backend, "batch_size", None) or 16
        found: dict[str, npt.NDArray[np.float32]] = {}
        with backend:
            for start in range(0, len(keys), size):
                batch = keys[start : start + size]
                given = [ahead(items[key]) if ahead else items[key] for key in batch]
                found |= zip(batch, work(given), strict=True)
        return found
