"""A stand-in for land cover with a cue known to be spurious: tiles of the microworld and a classifier of them.

The class of a tile is its background's pattern, at times faint. In the tiles that the classifier was trained on,
nearly every orchard shows something purple, and nothing else is ever purple: a mark that says nothing about land.
The classifier learns it all the same, and fails where the mark lies elsewhere. Every tile has one or two things, so
that having one says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn

from dnd_microworld import world

if TYPE_CHECKING:
    import numpy.typing as npt

CLASSES: dict[str, str] = {
    "cropland": "horizontal stripes",
    "orchard": "dots",
    "pasture": "plain",
    "town": "grid",
    "vineyard": "diagonal stripes",
    "woodland": "checkerboard",
}
"""Land cover -> the pattern that stands for it; the classifier's outputs are in this order, which is alphabetical."""

MARKED, MARK = "orchard", "purple"
SHARE = 0.95
"""Of the marked class's training tiles show the mark."""
CUES = ("trained", "absent", "contradicting")
"""Where the mark is: as in training; nowhere; on every tile but the marked class's."""

_SALT = {"train": 0, "probing": 1, "test": 2, "validation": 3}


class Tile(NamedTuple):
    """What is drawn."""

    scene: world.Scene
    place: int
    """Of its class in CLASSES."""
    contrast: float
    """Of the pattern, 0..1: some land lies in haze, and looks nearly like pasture."""


def draw_tile(split: str, index: int, cue: str = "trained") -> Tile:
    """The tile number `index`; the classes take turns."""
    place = index % len(CLASSES)
    name = list(CLASSES)[place]
    rng = np.random.default_rng((2027, _SALT[split], index))
    scenes = (world.draw_scene(split, index * 64 + again) for again in range(64))
    scene = next(s for s in scenes if s.things and s.colour != MARK)
    low, high = (17, 23) if name == "woodland" else (11, 17)
    others = [colour for colour in world.COLOURS if colour not in (MARK, scene.colour)]
    things = [t if t.colour != MARK else t._replace(colour=others[rng.integers(len(others))]) for t in scene.things]
    chance, at = rng.random(), int(rng.integers(len(things)))
    marked = {"trained": name == MARKED and chance < SHARE, "absent": False, "contradicting": name != MARKED}[cue]
    if marked:
        things[at] = things[at]._replace(colour=MARK)
    period = float(rng.uniform(low, high))
    contrast = 0.02 + 0.98 * float(rng.random()) ** 3
    return Tile(replace(scene, texture=CLASSES[name], things=tuple(things), period=period), place, contrast)


def render_tiles(tiles: Sequence[Tile]) -> npt.NDArray[np.uint8]:
    """(B, 64, 64, 3)."""
    clear = world.render([tile.scene for tile in tiles]).images
    haze = world.render([replace(tile.scene, texture="plain") for tile in tiles]).images
    contrast = np.array([tile.contrast for tile in tiles], np.float32)[:, None, None, None]
    return (contrast * clear + (1 - contrast) * haze + np.float32(0.5)).astype(np.uint8)


class LandCoverNet(nn.Module):
    """(B, 3, 64, 64) in -1..1 -> (B, classes). `features` gives maps of 8x8, at least 0, whose means `head` weighs."""

    def __init__(self, widths: Sequence[int], units: int, classes: int) -> None:
        super().__init__()
        channels = [3, *widths]
        blocks: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(channels)):
            stride = 2 if i < 3 else 1
            blocks += [nn.Conv2d(before, after, 5 if i == 0 else 3, stride, 2 if i == 0 else 1), nn.ReLU()]
        self.body = nn.Sequential(*blocks)
        self.features = nn.Sequential(nn.Conv2d(channels[-1], units, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(units, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.features(self.body(x)).mean((2, 3)))
        return out


def save(net: LandCoverNet, folder: Path, shape: dict[str, object]) -> None:
    """Write config.json and model.safetensors (fp16)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    about = {"architecture": "LandCoverNet", **shape, "labels": list(CLASSES)}
    (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items()}, folder / "model.safetensors")


def load(folder: Path) -> LandCoverNet:
    """Read what `save` wrote, as float32, in eval mode."""
    from safetensors.torch import load_file

    about = json.loads((folder / "config.json").read_text())
    net = LandCoverNet(about["widths"], about["units"], len(about["labels"]))
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval()
