"""The microworld: a small visual world rendered from seeds, and a target whose units have a known meaning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from dnd import api

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from PIL.Image import Image

HERE = Path(__file__).parent
LAST_SEED = 18
"""So many planted targets there are besides the shipped one."""
FIRST_SHARP = 7
"""From this one on they are wired over the sharper senses."""


def target_model(seed: int) -> str:
    """Over whose senses planted target `seed` is wired."""
    return "microworld-target-sharp" if seed >= FIRST_SHARP else "microworld-target"


class TargetConfig(api.Config):
    model: api.ModelName = target_model(0)
    """From planted_seed 7 on `microworld-target-sharp`, where none is named."""
    planted_seed: int = pydantic.Field(0, ge=0, le=LAST_SEED)
    """0: the units of truth.csv; 1 to 18: others over the model's senses, those of planted-SEED.csv."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _its_senses(cls, values: Any) -> Any:
        seed = values.get("planted_seed") if isinstance(values, Mapping) else None
        return {"model": target_model(seed), **values} if isinstance(seed, int) and seed >= FIRST_SHARP else values


class MicroworldTarget(api.Target):
    """A small network with a layer of planted units, whose meaning is known; its layer is `concepts`."""

    name = "microworld"
    Config = TargetConfig

    def build(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        from dnd_microworld import planted, target

        weights, seed = self.runtime.weights(self.config.model), self.config.planted_seed
        return planted.build(weights, seed) if seed else target.load(weights), target.preprocess

    def grade(self, labels: Sequence[api.Label]) -> api.Grading | None:
        """Judge labels of the layer `concepts` against truth.csv, or the planted seed's own; those of the shipped
        autoencoder's latents and of the shipped directions against latents/."""
        from dnd_microworld import grade

        figures = grade.read_figures(HERE / "figures.json", self.config.model)
        return grade.grade(labels, api.read_truth(self._truth()), figures)

    def _truth(self) -> Path:
        from dnd_microworld import planted

        folder, seed = HERE / "latents", self.config.planted_seed
        if self.reads.get("sae") == str(folder):
            return folder / "latents.csv"
        if self.reads.get("directions") == str(folder / "directions.safetensors"):
            return folder / "directions.csv"
        return planted.truth_file(seed) if seed else HERE / "truth.csv"


class ProbingConfig(api.Config):
    count: int = pydantic.Field(4000, ge=1)
    """How many scenes."""
    seed: int = pydantic.Field(0, ge=0, lt=1000)
    """Another seed gives other scenes of the probing split."""


class MicroworldProbing(api.ProbingSet):
    """Scenes of the probing split, drawn when they are opened. No training scene is among them."""

    name = "microworld"
    Config = ProbingConfig
    SPLIT = "probing"
    _STRIDE = 10_000_000

    def __len__(self) -> int:
        return int(self.config.count)

    def image_name(self, index: int) -> str:
        return f"scene-{self.config.seed * self._STRIDE + index:06d}"

    def open(self, index: int) -> Image:
        from PIL import Image

        from dnd_microworld import world

        scene = world.draw_scene(self.SPLIT, self.config.seed * self._STRIDE + index)
        return Image.fromarray(world.render([scene]).images[0])

    def masks(self, index: int) -> Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]:
        """Every concept of the scene by category: "colour", "texture", "shape" and pairs, each (64, 64)."""
        from dnd_microworld import world

        scene = world.draw_scene(self.SPLIT, self.config.seed * self._STRIDE + index)
        owners = world.render([scene]).owners[0]
        found: dict[str, dict[str, npt.NDArray[np.bool_]]] = {kind: {} for kind in world.CATEGORIES}
        for concept in sorted(world.concepts(scene)):
            found[world.category(concept)][concept] = world.concept_mask(scene, owners, concept)
        return found

    def digest(self) -> str:
        """Of the renderer's source, the count and the seed."""
        settings = f"{self.config.count} {self.config.seed}"
        return hashlib.sha256((HERE / "world.py").read_bytes() + settings.encode()).hexdigest()


class LandCoverConfig(api.Config):
    model: api.ModelName = "microworld-landcover"


class LandCoverTarget(api.Target):
    """A classifier of stand-in land cover that learned a spurious cue; its layer is `features`."""

    name = "microworld-landcover"
    Config = LandCoverConfig

    def build(self) -> tuple[torch.nn.Module, Callable[[Image], torch.Tensor]]:
        from dnd_microworld import landcover, target

        return landcover.load(self.runtime.weights(self.config.model)), target.preprocess


class TilesConfig(api.Config):
    count: int = pydantic.Field(1200, ge=1)
    """How many tiles; the classes take turns."""
    split: Literal["probing", "test"] = "test"
    cue: Literal["trained", "absent", "contradicting"] = "trained"
    """Where the spurious mark is: as in training, nowhere, or on every class but the one it marked in training."""


class LandCoverTiles(api.ProbingSet):
    """Tiles of stand-in land cover with their classes, none of them seen in training."""

    name = "microworld-landcover"
    Config = TilesConfig

    def __len__(self) -> int:
        return int(self.config.count)

    def image_name(self, index: int) -> str:
        return f"{self.label(index)}/{self.config.split}-{self.config.cue}-{index:05d}"

    def open(self, index: int) -> Image:
        from PIL import Image

        from dnd_microworld import landcover

        tile = landcover.draw_tile(self.config.split, index, self.config.cue)
        return Image.fromarray(landcover.render_tiles([tile])[0])

    def label(self, index: int) -> str:
        """The land cover."""
        from dnd_microworld import landcover

        return list(landcover.CLASSES)[index % len(landcover.CLASSES)]

    def digest(self) -> str:
        """Of the renderers' sources and the settings."""
        sources = (HERE / "world.py").read_bytes() + (HERE / "landcover.py").read_bytes()
        return hashlib.sha256(sources + self.config.model_dump_json().encode()).hexdigest()


@api.hookimpl
def register_targets() -> Iterable[type[api.Target]]:
    return [MicroworldTarget, LandCoverTarget]


@api.hookimpl
def register_probing_sets() -> Iterable[type[api.ProbingSet]]:
    return [MicroworldProbing, LandCoverTiles]
