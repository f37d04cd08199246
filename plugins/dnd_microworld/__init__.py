"""The microworld: a small visual world rendered from seeds, and a target whose units have a known meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from dnd import api

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

HERE = Path(__file__).parent


class TargetConfig(api.Config):
    model: api.ModelName = "microworld-target"


class MicroworldTarget(api.Target):
    """The planted target; its layer is `concepts`."""

    name = "microworld"
    Config = TargetConfig

    def build(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        from dnd_microworld import target

        return target.load(self.runtime.weights(self.config.model)), target.preprocess

    def grade(self, labels: Sequence[api.Label]) -> api.Grading | None:
        """Judge labels of the layer `concepts` against truth.csv."""
        from dnd_microworld import grade

        return grade.grade(labels, grade.read_truth(HERE / "truth.csv"), grade.read_figures(HERE / "figures.json"))


class ProbingConfig(api.Config):
    count: int = pydantic.Field(4000, ge=1)
    """How many scenes."""
    seed: int = pydantic.Field(0, ge=0, lt=1000)
    """Another seed gives other scenes of the probing split."""


class MicroworldProbing(api.ProbingSet):
    """Scenes of the probing split, drawn when they are opened. No training scene is among them."""

    name = "microworld"
    Config = ProbingConfig
    _STRIDE = 10_000_000

    def __len__(self) -> int:
        return int(self.config.count)

    def image_name(self, index: int) -> str:
        return f"scene-{self.config.seed * self._STRIDE + index:06d}"

    def open(self, index: int) -> Image:
        from PIL import Image

        from dnd_microworld import world

        scene = world.draw_scene("probing", self.config.seed * self._STRIDE + index)
        return Image.fromarray(world.render([scene]).images[0])

    def digest(self) -> str:
        """Of the renderer's source, the count and the seed."""
        settings = f"{self.config.count} {self.config.seed}"
        return hashlib.sha256((HERE / "world.py").read_bytes() + settings.encode()).hexdigest()


@api.hookimpl
def register_targets() -> Iterable[type[api.Target]]:
    return [MicroworldTarget]


@api.hookimpl
def register_probing_sets() -> Iterable[type[api.ProbingSet]]:
    return [MicroworldProbing]
