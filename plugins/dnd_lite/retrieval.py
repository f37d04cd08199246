"""Generator `retrieval`: shows a concept by the photos of a folder that match it best, inventing nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from dnd.api import Config, Generator, ImageRequest, ProbingFolder, Runtime
from dnd_lite.index import Index, Vocabulary, build_index, listing_digest
from dnd_lite.networks import Variant
from dnd_lite.tagger import Recogniser

if TYPE_CHECKING:
    from PIL.Image import Image


class RetrievalConfig(Config):
    folder: ProbingFolder
    """Where the photos are: those of the probing set unless others are named, which is better."""
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
    """Photos of a folder that match a concept, in place of synthetic images: nothing is invented.

    A concept's photos are those with at least half the best one's match, `nearest` of them at most.

    A request's seed is an opaque number and a request knows nothing of the others, so the seed draws one of
    these photos, all alike: other seeds give other photos as often as chance and the folder have it. Where a
    folder has one photo of a concept, every seed gives that one; two concepts with the same photos then score
    alike, and the earlier candidate wins. A concept of which no word is known may be any photo of the folder:
    that drives a unit no more than chance does.
    """

    name = "retrieval"
    spreads = False
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

    def image_size(self) -> tuple[int, int]:
        return self.config.longest, self.config.longest

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        return [self._show(request) for request in requests]

    def _show(self, request: ImageRequest) -> Image:
        assert self._index is not None, "used outside of `with`"
        assert self._vocabulary is not None
        numbers = self._index.nearest(self._vocabulary.parts(request.concept), self.config.nearest)
        photo = self._index.photos.open(int(np.random.default_rng(request.seed).choice(numbers)))
        photo.thumbnail((self.config.longest, self.config.longest))
        return photo
