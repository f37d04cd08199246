"""Activation maps small enough to keep: what a reader of the report sees laid over an exemplar."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_EDGE = 16
"""Cells along an edge at most: a map is to be shown here, not computed with."""


def small_map(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8] | None:
    """A map (h, w) as cells (at most 16, at most 16): 0 for its lowest value, 255 for its highest. None where it is
    constant or not finite."""
    from PIL import Image

    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low) or high <= low:
        return None
    scaled = (values.astype(np.float64) - low) / (high - low)
    height, width = (min(edge, _EDGE) for edge in values.shape)
    if (height, width) != values.shape:
        small = Image.fromarray(scaled.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
        scaled = np.asarray(small, np.float64)
    return (scaled * 255).round().astype(np.uint8)
