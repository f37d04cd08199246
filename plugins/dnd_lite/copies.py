"""Photos that show the same content: copied, resized, compressed again, brightened or mirrored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 16
_ALIKE = 0.97
"""Correlation of the pixels of two photos, reduced to 16x16, from which one is a copy of the other. Of 432 cut-outs of
different things 2 pairs are above it, both of one thing in two states."""
_SAME = 0.01
"""Root mean square difference, of 1, below which plain photos are: they have nothing that correlates."""


class Copies:
    """Knows a photo again."""

    def __init__(self) -> None:
        self._known = np.zeros((0, _SIDE * _SIDE * 3), np.float32)
        self._n = 0

    def add(self, photo: Image) -> bool:
        """Remembers the photo; False where it is a copy of one that was added before."""
        small = _reduced(photo)
        known = self._known[: self._n]
        new = not any(_is_copy(one.ravel(), known) for one in (small, small[:, ::-1]))
        if self._n == len(self._known):
            self._known = np.concatenate([self._known, np.zeros((max(64, self._n), self._known.shape[1]), np.float32)])
        self._known[self._n] = small.ravel()
        self._n += 1
        return new


def _reduced(photo: Image) -> npt.NDArray[np.float32]:
    """(side, side, 3), 0..1."""
    from PIL import Image as images

    small = photo.convert("RGB").resize((_SIDE, _SIDE), images.Resampling.BOX)
    return np.asarray(small, np.float32) / 255


def _is_copy(one: npt.NDArray[np.float32], known: npt.NDArray[np.float32]) -> bool:
    """One (d,) of `known` (n, d)."""
    if not len(known):
        return False
    ours, theirs = one - one.mean(), known - known.mean(1, keepdims=True)
    sizes = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours)
    alike = theirs @ ours >= _ALIKE * sizes
    same = np.sqrt(((known - one) ** 2).mean(1)) < _SAME
    return bool(((alike & (sizes > 1)) | same).any())
