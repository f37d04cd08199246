"""Generator `retrieval`: shows a concept by the photos of a folder that match it, inventing nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic

from dnd.api import Config, Generator, ImageRequest, ProbingFolder, ProbingFolders, Runtime
from dnd_lite.index import Index, Vocabulary, build_index, listing_digest
from dnd_lite.networks import Variant
from dnd_lite.tagger import Recogniser

if TYPE_CHECKING:
    from PIL.Image import Image

_LEAST_SIDE = 8
"""Pixels that the core accepts."""


class RetrievalConfig(Config):
    folder: ProbingFolder
    """Where the photos are. Those of the probing set unless others are named, which is better: half of them are then
    left to the generator, and only the other half is probed with."""
    probing: ProbingFolders = ()
    """The folders that are probed with: no photo is shown that is in one of them too, nor nearly. Filled in."""
    listing: str = ""
    """Digest of the photos in `folder`; filled in, so that a change is noticed."""
    probed: str = ""
    """Digest of the photos in `probing`; filled in."""
    variant: Variant = 2
    """Which Lite network looks at the photos."""
    match: float = pydantic.Field(0.2, gt=0, le=1)
    """How sure it must be that a photo shows the concept."""
    longest: int = pydantic.Field(400, ge=64)
    """Longer side of the images given, px."""
    removed: ClassVar[Mapping[str, str]] = {"nearest": "images.n says how many photos are shown, generator.match which"}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("folder"), str | Path):
            return values
        folder = Path(values["folder"]).expanduser().absolute()
        listing = listing_digest([folder])
        if values.get("listing", listing) not in (listing, ""):
            raise ValueError(f"other photos are in {folder} now: remove generator.listing to use them")
        probed = listing_digest(map(Path, values.get("probing", ())))
        return {**values, "folder": folder, "listing": listing, "probed": probed}


class Retrieval(Generator):
    """Photos of a folder that match a concept, in place of synthetic images: nothing is invented.

    A concept's images are the photos that match it, the best first, each once; where there are no more, there is none.
    Photos that the run probes with, and near copies of them, are not shown. A concept of which no word is known has no
    photos.
    """

    name = "retrieval"
    spreads = False
    Config = RetrievalConfig

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._index: Index | None = None
        self._vocabulary: Vocabulary | None = None

    def load(self) -> None:
        c = self.config
        self._vocabulary = Vocabulary()
        self._index = build_index(c.folder, c.probing, Recogniser(c.variant, self.runtime.device))

    def close(self) -> None:
        self._index = self._vocabulary = None

    def image_size(self) -> tuple[int, int]:
        return self.config.longest, self.config.longest

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image | None]:
        return [self._show(request) for request in requests]

    def _show(self, request: ImageRequest) -> Image | None:
        assert self._index is not None, "used outside of `with`"
        assert self._vocabulary is not None
        numbers = self._index.matching(self._vocabulary.parts(request.concept), self.config.match)
        if request.number >= len(numbers):
            return None
        photo = self._index.photos.open(int(numbers[request.number]))
        photo.thumbnail((self.config.longest, self.config.longest))
        return _padded(photo)


def _padded(photo: Image) -> Image:
    """With white around a photo that is narrower than a generator's image may be."""
    from PIL import ImageOps

    missing = [max(0, _LEAST_SIDE - side) for side in photo.size]
    return ImageOps.expand(photo, tuple(-(-one // 2) for one in missing), "white") if any(missing) else photo
