"""Images of a probing set that stay in memory once they were opened, while there is room for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dnd.api import ProbingSet

if TYPE_CHECKING:
    from PIL.Image import Image

ROOM = 512 << 20
"""Bytes of pixels."""


class RememberedSet(ProbingSet):
    """The same images; of those opened lately the pixels are kept, so that the next step decodes none of them again.

    A small set is opened once in all; of a large one, those images are kept that a batch still needs.
    """

    def __init__(self, probing: ProbingSet, room: int = ROOM) -> None:
        self.name = probing.name  # type: ignore[misc]
        self.probing, self._room, self._used = probing, room, 0
        self._images: OrderedDict[int, Image] = OrderedDict()
        """The one opened last comes last."""
        self._lock = Lock()

    def forget(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._images.clear()
            self._used = 0

    def __len__(self) -> int:
        return len(self.probing)

    def image_name(self, index: int) -> str:
        return self.probing.image_name(index)

    def open(self, index: int) -> Image:
        """A copy of its own for each caller, who may change it."""
        with self._lock:
            known = self._images.get(index)
            if known is not None:
                self._images.move_to_end(index)
        if known is not None:
            return _copy(known)
        image = self.probing.open(index)
        size = _bytes(image)
        if size > self._room:
            return image
        with self._lock:
            if index not in self._images:
                self._images[index] = image
                self._used += size
            while self._used > self._room:
                self._used -= _bytes(self._images.popitem(last=False)[1])
        return _copy(image)

    def label(self, index: int) -> str | None:
        return self.probing.label(index)

    def masks(self, index: int) -> Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]:
        return self.probing.masks(index)

    def digest(self) -> str:
        return self.probing.digest()


def _copy(image: Image) -> Image:
    found = image.copy()
    if "bands" in found.info:
        found.info["bands"] = found.info["bands"].copy()
    return found


def _bytes(image: Image) -> int:
    bands = image.info.get("bands")
    return len(image.getbands()) * image.width * image.height + (0 if bands is None else int(bands.nbytes))
