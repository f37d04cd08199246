"""Small made-up inputs: images, requests, evidence, a runtime. The same at every call, and no need of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dnd.api import Evidence, ImageRequest, Picture, Runtime, SummaryRequest, Unit

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = {"red": (210, 30, 35), "green": (40, 160, 60), "blue": (30, 60, 200), "yellow": (240, 220, 50)}
CONCEPTS = tuple(COLOURS)
_SIZES = ((64, 64), (96, 64), (48, 80), (160, 120), (33, 57), (64, 64))


def runtime(device: str = "cpu", folders: Mapping[str, Path] | None = None) -> Runtime:
    """`folders` gives models of your own by name; all other names are looked up in models.lock, as in a run."""

    def weights(name: str) -> Path:
        if name in (folders or {}):
            return Path((folders or {})[name])
        from dnd.models.weights import Weights

        return Weights.default().resolve(name)

    return Runtime(device, weights)


def images(n: int = 6, seed: int = 0) -> list[Image]:
    """RGB, of several sizes, no two alike: a colour each, shaded from left to right, with grain and a dark square."""
    return [_image(list(COLOURS)[i % len(COLOURS)], seed * 1000 + i, _SIZES[i % len(_SIZES)]) for i in range(n)]


def _image(colour: str, seed: int, size: tuple[int, int]) -> Image:
    from PIL import Image

    width, height = size
    chance = np.random.default_rng(seed)
    shade = np.linspace(0.7, 1.0, width)[None, :, None]
    pixels = np.array(COLOURS[colour]) * shade + chance.normal(0, 12, (height, width, 3))
    top, left, side = int(chance.integers(height // 2)), int(chance.integers(width // 2)), min(size) // 4
    pixels[top : top + side, left : left + side] = 20
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def summary_requests(n: int = 3, n_concepts: int = 4, *, of_images: bool = False) -> list[SummaryRequest]:
    """Units whose captions agree on a colour or a shape, each with a caption that does not fit; or, for a summarizer
    that reads images, whose exemplars agree on a colour."""
    shapes = ("circle", "square", "star", "triangle")
    found = []
    for number in range(n):
        colour, shape = CONCEPTS[number % len(CONCEPTS)], shapes[number % len(shapes)]
        captions = [
            f"a {colour} {shape} on a white background",
            f"a {colour} {shape} and a {CONCEPTS[(number + 1) % 4]} ring",
            f"a {colour} {shapes[(number + 1) % 4]} on a plain background",
            f"a {colour} {shape}",
            "a purple heart on an orange background",
        ]
        request = SummaryRequest(captions=tuple(captions), n_concepts=n_concepts, seed=100 + number)
        if of_images:
            shown = tuple(picture(_image(colour, 700 + 10 * number + i, (64, 48))) for i in range(4))
            request = SummaryRequest((), n_concepts, 100 + number, shown)
        found.append(request)
    return found


def image_requests(concepts: Sequence[str] = CONCEPTS, n: int = 2) -> list[ImageRequest]:
    """`n` requests of different seeds and numbers for each concept."""
    return [ImageRequest(concept, 7 + number, number) for concept in concepts for number in range(n)]


def picture(image: Image) -> Picture:
    """An image as the store would give it."""
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
    return Picture(digest, image.copy)


def evidence(concepts: Sequence[str] = CONCEPTS, n_images: int = 4, seed: int = 0) -> Evidence:
    """Of a unit that responds to the first concept, and a little to chance."""
    chance = np.random.default_rng(seed)
    colours = [concept if concept in COLOURS else CONCEPTS[i % 4] for i, concept in enumerate(concepts)]
    rows = [[_image(c, 50 + 100 * i + j, (48, 48)) for j in range(n_images)] for i, c in enumerate(colours)]
    activations = chance.normal(0.2, 0.1, (len(concepts), n_images))
    activations[:1] += 2
    sample, exemplars = images(12, seed + 1), [_image(colours[0], 900 + i, (64, 48)) for i in range(5)]
    return Evidence(
        unit=Unit("layer", seed),
        exemplars=tuple(map(picture, exemplars)),
        exemplar_activations=np.linspace(3, 2, len(exemplars), dtype=np.float32),
        concepts=tuple(concepts),
        images=tuple(tuple(map(picture, row)) for row in rows),
        activations=activations.astype(np.float32),
        sample=tuple(map(picture, sample)),
        sample_activations=chance.normal(0.2, 0.3, len(sample)).astype(np.float32),
    )
