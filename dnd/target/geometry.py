"""Where the target's input lies in its source image, found by probing the preprocess.

A preprocess is an opaque callable. For each size of source image it is shown black and white, which gives what it
does to colours and which pixels of its output show the source at all, then a horizontal and a vertical ramp:
through them every output pixel says which place of the source it shows. A straight line through those is the
frame, if one fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from dnd.api import Box

Floats = npt.NDArray[np.float64]

_TOLERANCE = 0.01
"""How far, in fractions of the source, places may be off the line (root mean square), and how far it may lean."""

_SLACK = 0.25
"""Pixels of the source; frames are measured to within that for images up to a few hundred pixels."""


class Geometry:
    """Remembers the frame of each source size."""

    problem: str
    """Why there was no frame, the first time there was none; else empty."""

    def __init__(self, prepare: Callable[[Image.Image], Tensor]) -> None:
        self.problem = ""
        self._prepare = prepare
        self._frames: dict[tuple[int, int], Box | None] = {}

    def frame(self, size: tuple[int, int]) -> Box | None:
        """The edges of the target's input in fractions of a source image of (width, height).

        Within 0..1 where the preprocess crops, outside where it pads; right < left where it mirrors. None where
        input and source are not joined by scaling, cropping, padding and mirroring; `problem` then says why.
        """
        if size not in self._frames:
            try:
                self._frames[size] = self._measure(size)
            except _NotAffine as error:
                self.problem = self.problem or f"no attention crops: the target's preprocess {error}"
                self._frames[size] = None
        return self._frames[size]

    def _measure(self, size: tuple[int, int]) -> Box:
        width, height = size
        black, white = (self._show(np.broadcast_to(value, (height, width))) for value in (0.0, 255.0))
        across = np.broadcast_to(np.linspace(0, 255, width).round(), (height, width))
        down = np.broadcast_to(np.linspace(0, 255, height).round()[:, None], (height, width))
        if not self._frames and not np.array_equal(self._show(across), self._show(across)):
            raise _NotAffine("changes from call to call")
        left, right = self._edges(black, white, self._show(across), width, 0)
        top, bottom = self._edges(black, white, self._show(down), height, 1)
        return Box(left, top, right, bottom)

    def _show(self, values: npt.NDArray[np.float64]) -> Floats:
        """The preprocess's output (C, H, W) for a grey image."""
        image = Image.fromarray(values.astype(np.uint8)).convert("RGB")  # bytes first: photographs are large
        return np.asarray(self._prepare(image).double().numpy())

    def _edges(self, black: Floats, white: Floats, ramp: Floats, length: int, axis: int) -> tuple[float, float]:
        """Where the input's first and last edge lie along one axis (0: x, 1: y) of the source, in fractions."""
        if length == 1:
            return 0.0, 1.0
        if not black.shape == white.shape == ramp.shape:
            raise _NotAffine("gives inputs of several sizes")
        span = white - black
        power = (span**2).sum(0)  # (H, W)
        if not np.isfinite(power).all() or power.max() <= 0:
            raise _NotAffine("does not tell black from white")
        level = ((ramp - black) * span).sum(0) / np.where(power > 0, power, 1)
        seen = (power > 0.9 * power.max()) & (level > 0.02) & (level < 0.98)
        places = (level[seen] * (length - 1) + 0.5) / length
        rows, columns = np.nonzero(seen)
        middles = np.stack([(columns + 0.5) / power.shape[1], (rows + 0.5) / power.shape[0], np.ones(len(rows))], 1)
        if len(places) < 16:
            raise _NotAffine("shows too little of the source")
        line, *_ = np.linalg.lstsq(middles, places, rcond=None)
        off = float(np.sqrt(np.mean((middles @ line - places) ** 2)))
        if off > _TOLERANCE or abs(line[1 - axis]) > _TOLERANCE or abs(line[axis]) < 1e-6:
            raise _NotAffine("does more than scale, crop, pad and mirror")
        return float(line[2]), float(line[2] + line[axis])


class _NotAffine(Exception):
    """Input and source are not joined by a frame."""


def to_source(frame: Box, box: Box) -> Box | None:
    """A box in fractions of the target's input, in fractions of the source; None if it lies outside."""
    xs = sorted(frame.left + x * (frame.right - frame.left) for x in (box.left, box.right))
    ys = sorted(frame.top + y * (frame.bottom - frame.top) for y in (box.top, box.bottom))
    left, top, right, bottom = (min(max(edge, 0.0), 1.0) for edge in (xs[0], ys[0], xs[1], ys[1]))
    return Box(left, top, right, bottom) if right > left and bottom > top else None


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The part of an image within a box: whole pixels, at least one; a pixel less than a quarter inside is left out."""
    left = min(math.floor(box.left * image.width + _SLACK), image.width - 1)
    top = min(math.floor(box.top * image.height + _SLACK), image.height - 1)
    right = max(left + 1, math.ceil(box.right * image.width - _SLACK))
    bottom = max(top + 1, math.ceil(box.bottom * image.height - _SLACK))
    part = image.crop((left, top, right, bottom))
    bands = image.info.get("bands")
    if bands is not None:  # of a multi-band tile: the part's own
        part.info["bands"] = bands[top:bottom, left:right]
    return part
