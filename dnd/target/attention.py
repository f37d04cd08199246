"""Activation maps small enough to keep: what a reader of the report sees laid over an exemplar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnd.api import Box

_EDGE = 16
"""Cells along an edge at most: a map is to be looked at here, not computed with."""


@dataclass(frozen=True)
class Attention:
    """A unit's map on an image."""

    packed: bytes
    """Height, width (a byte each), then the cells row by row: 0 for the map's lowest value, 255 for its highest."""
    frame: Box
    """Where it lies, in fractions of the source image; see `dnd.target.geometry.Geometry.frame`."""


def packed(values: npt.NDArray[np.float32]) -> bytes:
    """A map (h, w) as `Attention.packed`; empty where it is constant or not finite."""
    from PIL import Image

    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low) or high <= low:
        return b""
    scaled = (values.astype(np.float64) - low) / (high - low)
    height, width = (min(edge, _EDGE) for edge in values.shape)
    if (height, width) != values.shape:
        small = Image.fromarray(scaled.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        scaled = np.asarray(small, np.float64)
    return bytes([height, width]) + (scaled * 255).round().astype(np.uint8).tobytes()
