# mypy: disallow-untyped-calls=False
"""Attention crops: the boxes where a unit's activation map is high (method, step 1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dnd.api import FRAME, Box

_MAX_OVERLAP = 0.5
"""A box whose IoU with a kept one is above this is skipped."""
_WHOLE = 0.8
"""A box whose IoU with the whole frame is at least this is skipped."""


def attention_boxes(activation_map: npt.NDArray[Any], frame: tuple[int, int], max_boxes: int = 4) -> list[Box]:
    """Where a map (h, w) of any dtype is high: boxes in fractions of the target's input, largest first.

    The map is scaled to 0..1 and bilinearly to `frame` (H, W), thresholded with Otsu's method, and boxes put
    around the external contours. A constant map, or one that is not finite, has none.
    """
    from scipy import ndimage  # type: ignore[import-untyped]

    high = _high(np.asarray(activation_map, np.float64), frame)
    if high is None:
        return []
    height, width = high.shape
    # Without holes, and the islands in them, each region is one external contour; corners join.
    regions, _ = ndimage.label(ndimage.binary_fill_holes(high), structure=np.ones((3, 3)))
    places = ndimage.find_objects(regions)
    boxes = [Box(x.start / width, y.start / height, x.stop / width, y.stop / height) for y, x in places]
    return select_boxes(boxes, max_boxes)


def select_boxes(boxes: Sequence[Box], max_boxes: int) -> list[Box]:
    """The largest boxes, skipping those that cover nearly the whole frame or mostly a box already kept."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda b: (-b.area, b)):
        if len(kept) < max_boxes and box.iou(FRAME) < _WHOLE and all(box.iou(k) <= _MAX_OVERLAP for k in kept):
            kept.append(box)
    return kept


def _high(values: npt.NDArray[np.float64], frame: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    """Bool (H, W): above Otsu's threshold."""
    from skimage.filters import threshold_otsu

    low, peak = values.min(), values.max()
    if not np.isfinite(peak - low) or peak <= low:
        return None
    scaled = Image.fromarray(((values - low) / (peak - low)).astype(np.float32))
    large = np.asarray(scaled.resize((frame[1], frame[0]), Image.Resampling.BILINEAR))
    if large.max() <= large.min():
        return None
    return np.asarray(large > threshold_otsu(large))
