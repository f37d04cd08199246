"""A probing set of random blobs, and a network that sees them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from dnd.api import ProbingSet

SIZE = 32


class Blobs(ProbingSet):
    """Random blobs of colour; the images in `bad` cannot be read, image 5 equals image 2."""

    name = "blobs"

    def __init__(self, n: int = 40, bad: tuple[int, ...] = ()) -> None:
        self.n, self.bad, self.opened = n, bad, [0] * n

    def __len__(self) -> int:
        return self.n

    def image_name(self, index: int) -> str:
        return f"{index:03}.png"

    def open(self, index: int) -> Image.Image:
        if index in self.bad:
            raise ValueError("broken on purpose")
        self.opened[index] += 1
        rng = np.random.default_rng(2 if index == 5 else index)
        pixels = np.full((48, 64, 3), rng.integers(0, 60, 3), np.uint8)
        for _ in range(3):
            y, x = rng.integers(0, 36), rng.integers(0, 50)
            pixels[y : y + 12, x : x + 14] = rng.integers(0, 255, 3)
        return Image.fromarray(pixels)

    def digest(self) -> str:
        return f"blobs {self.n}"


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, 2, 2),
        torch.nn.ReLU(inplace=True),
        torch.nn.Conv2d(8, 6, 3, 2, 1),
        torch.nn.ReLU(inplace=True),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 64, 4),
    )


def preprocess(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)
