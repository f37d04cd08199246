"""Generator `retrieval`: shows a concept by the photos of a folder that match it best, inventing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from dnd.api import Config, Generator, ImageRequest, Runtime
from dnd_lite.index import Index, Vocabulary, build_index, listing_digest
from dnd_lite.networks import Variant
from dnd_lite.tagger import Recogniser

if TYPE_CHECKING:
    from PIL.Image import Image


class RetrievalConfig(Config):
    folder: Path
    """Where the photos are: those of the probing set, or better others."""
    listing: str = ""
    """Digest of the photos' names and sizes; filled in, so that a change of the folder is noticed."""
    variant: Variant = 2
    """Which Lite network looks at the photos."""
    nearest: int = pydantic.Field(10, ge=1)
    """Photos per concept, at most."""
    longest: int = pydantic.Field(400, ge=64)
    """Longer side of the images given, px."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("folder"), str | Path):
            return values
        folder = Path(values["folder"]).expanduser().absolute()
        listing = listing_digest(folder)
        if values.get("listing", listing) not in (listing, ""):
            raise ValueError(f"other photos are in {folder} now: remove generator.listing to use them")
        return {**values, "folder": folder, "listing": listing}


class Retrieval(Generator):
    """A concept's photos are those with at least half the best one's match, `nearest` of them at most.

    A request's seed is an opaque number, and a request must not know of the others: so it draws one of these
    photos and a view of it (a crop of 85-100 % of each side, mirrored or not). Other seeds give other images:
    other photos as far as the folder has them, else other views of the same. A concept of which no word is
    known may be any photo of the folder: that drives a unit no more than chance, so it does not win.
    """

    name = "retrieval"
    Config = RetrievalConfig

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._index: Index | None = None
        self._vocabulary: Vocabulary | None = None

    def load(self) -> None:
        self._vocabulary = Vocabulary()
        self._index = build_index(self.config.folder, Recogniser(self.config.variant, self.runtime.device))

    def close(self) -> None:
        self._index = self._vocabulary = None

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        return [self._show(request) for request in requests]

    def _show(self, request: ImageRequest) -> Image:
        assert self._index is not None, "used outside of `with`"
        assert self._vocabulary is not None
        numbers = self._index.nearest(self._vocabulary.parts(request.concept), self.config.nearest)
        random = np.random.default_rng(request.seed)
        photo = self._index.photos.open(int(random.choice(numbers)))
        photo.thumbnail((self.config.longest, self.config.longest))
        return _view(photo, random)


def _view(photo: Image, random: np.random.Generator) -> Image:
    """A crop of 85-100 % of each side, mirrored or not."""
    from PIL import ImageOps

    width, height = (round(side * random.uniform(0.85, 1)) for side in photo.size)
    left, top = int(random.integers(photo.width - width + 1)), int(random.integers(photo.height - height + 1))
    view = photo.crop((left, top, left + width, top + height))
    return ImageOps.mirror(view) if random.integers(2) else view
