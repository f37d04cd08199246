"""A toy world in which every answer is known: flat coloured images, a target with a unit per colour channel.

The backends are small but real: they look at pixels. `Mood` makes them misbehave on chosen items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dnd import api
from dnd.config.read import build_run
from dnd.config.run import Run
from dnd.plugin.registry import Entry, Registry

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@dataclass
class Mood:
    """What goes wrong, and what was asked for."""

    fail_on: set[str] = field(default_factory=set)
    short_on: set[str] = field(default_factory=set)
    calls: dict[str, list[int]] = field(default_factory=dict)

    def note(self, kind: str, words: Sequence[str]) -> None:
        self.calls.setdefault(kind, []).append(len(words))
        for word in words:
            if word in self.fail_on:
                raise RuntimeError(f"cannot do {word}")


MOOD = Mood()


def colour_of(image: Image.Image) -> str:
    mean = np.asarray(image, np.float64).reshape(-1, 3).mean(0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


class BatchConfig(api.Config):
    batch_size: int = 4


class Batched(api.Backend):
    """Takes as many items at once as its settings say."""

    def __init__(self, config: BatchConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size


class Captioner(Batched, api.Captioner):
    name = "toy"

    class Config(BatchConfig):
        suffix: str = ""

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        words = [colour_of(image) for image in images]
        MOOD.note("captions", words)
        if any(word in MOOD.short_on for word in words):
            return []
        return [f"a {word} thing{self.config.suffix}" for word in words]


class Summarizer(Batched, api.Summarizer):
    name = "toy"
    Config = BatchConfig

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        MOOD.note("concepts", [request.captions[0].split()[1] for request in requests])
        answers = []
        for request in requests:
            words = [caption.split()[1] for caption in request.captions]
            order = sorted(dict.fromkeys(words), key=lambda w: (-words.count(w), w))
            rest = [c for c in COLOURS if c not in order]
            answers.append((order + rest)[: request.n_concepts])
        return answers


class Generator(Batched, api.Generator):
    name = "toy"
    Config = BatchConfig

    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image.Image]:
        MOOD.note("images", [request.concept for request in requests])
        return [flat(request.concept, request.seed) for request in requests]


class Scorer(Batched, api.Scorer):
    name = "toy"
    Config = BatchConfig

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        MOOD.note("scores", [str(one.unit) for one in evidence])
        return [[float(np.nanmean(row)) for row in one.activations] for one in evidence]


class Net(torch.nn.Module):
    """`units`: red, green, blue, and one that is always zero."""

    def __init__(self) -> None:
        super().__init__()
        self.units = torch.nn.Conv2d(3, 4, 1, bias=False)
        with torch.no_grad():
            self.units.weight.copy_(torch.eye(4, 3)[:, :, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.units(x).mean((2, 3))


def preprocess(image: Image.Image) -> torch.Tensor:
    small = image.resize((8, 8), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def flat(colour: str, seed: int, size: int = 12) -> Image.Image:
    """A nearly flat image of a colour; the seed moves every channel a little, and no two are the same."""
    rng = np.random.default_rng(seed)
    tint = np.clip(np.array(COLOURS[colour]) + rng.integers(-60, 61, 3), 0, 255).astype(np.uint8)
    pixels = np.broadcast_to(tint, (size, size, 3)).copy()
    pixels[0, :2] = rng.integers(0, 256, (2, 3))  # where the tint is cut off at the colour itself, too
    return Image.fromarray(pixels)


def make_photos(folder: Path, n: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        colour = list(COLOURS)[number % 3]
        flat(colour, number).save(folder / f"{number:03}.png")
    return folder


def registry() -> Registry:
    kinds = {"captioner": Captioner, "summarizer": Summarizer, "generator": Generator, "scorer": Scorer}
    return Registry(Entry(kind, cls.name, cls, "toys", "1", "ok") for kind, cls in kinds.items())


def toy_run(photos: Path, known: Registry | None = None, **tables: object) -> Run:
    base: dict[str, object] = {
        "target": {"name": "Net", "layers": ["units"], "units": "all"},
        "probing": {"set": str(photos)},
        "exemplars": {"k": 4, "sample": 12},
        "images": {"n": 4},
        "device": "cpu",
        **{kind: {"backend": "toy"} for kind in ("captioner", "summarizer", "generator", "scorer")},
    }
    return build_run({**base, **tables}, known or registry(), live_target=True)
