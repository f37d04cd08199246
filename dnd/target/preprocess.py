"""From an RGB image to the target's input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
import torch

from dnd.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image


def probe_image(width: int = 160, height: int = 120) -> Image:
    """An RGB image with something of everything: it shows what a preprocess does."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x * 7 ^ y * 13) % 256], 2).astype(np.uint8)
    return PIL.Image.fromarray(pixels)


Preprocess = Callable[["Image"], torch.Tensor]


def stack(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """[(C, H, W)] -> (B, C, H, W)."""
    odd = next((image for image in images if image.shape != images[0].shape), None)
    if odd is not None:
        raise UsageError(
            f"the target's preprocess gives inputs of several sizes: {tuple(images[0].shape)}, {tuple(odd.shape)}",
            "Let it resize or crop every image to one size.",
        )
    return torch.stack(list(images))
