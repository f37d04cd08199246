"""The planted target: a small convolutional network with a layer of units whose meaning is known.

`Senses` was trained to say, cell by cell, which colour, texture and shape is there; its maps feed a layer
named `concepts` whose weights were set by hand: each channel is a single attribute, a conjunction of two,
a union of two unrelated concepts, or noise. Everything on the way is an ordinary module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from dnd_microworld import world

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = tuple(world.COLOURS)
TEXTURES = world.TEXTURES[1:]
SHAPES = world.SHAPES
ATTRIBUTES = (*COLOURS, *TEXTURES, *SHAPES)
"""What the 21 maps are of."""
GRID = 16
"""Side of the maps, in cells of 4x4 pixels."""


class _Conv(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _Conv(width, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.second(self.first(x))))


class Trunk(nn.Module):
    """(B, channels, 64, 64) in -1..1 -> logits (B, outputs, 16, 16), one per cell, with the whole picture in view."""

    def __init__(
        self, widths: Sequence[int] = (48, 64, 96), depth: int = 3, channels: int = 3, outputs: int = len(ATTRIBUTES)
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.fine = nn.Sequential(nn.PixelUnshuffle(2), _Conv(4 * channels, a), _Conv(a, b, 2), _Residual(b))
        self.coarse = nn.Sequential(_Conv(b, c, 2), *(_Residual(c) for _ in range(depth)))
        self.merge = nn.Sequential(
            nn.Conv2d(b + c, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True), _Conv(b, b)
        )
        self.head = nn.Conv2d(b, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)  # (B, b, 16, 16)
        context = F.interpolate(self.coarse(fine), scale_factor=2.0, mode="nearest")
        out: torch.Tensor = self.head(self.merge(torch.cat([fine, context], 1)))
        return out


class Senses(nn.Module):
    """(B, 3, 64, 64) in -1..1 -> logits (B, 21, 16, 16) of `ATTRIBUTES`.

    Two nets that share nothing, so that colours and shapes never seen together are found together: `structure`
    sees no colour, and `palette` no further than a few pixels.
    """

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.palette = nn.Sequential(
            nn.PixelUnshuffle(2),
            _Conv(12, 24),
            _Conv(24, 32, 2),
            nn.Conv2d(32, 32, 1),
            nn.ReLU(),
            nn.Conv2d(32, len(COLOURS), 1),
        )
        self.structure = Trunk(widths, depth, channels=1, outputs=len(TEXTURES) + len(SHAPES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grey = 0.3 * x[:, 0:1] + 0.5 * x[:, 1:2] + 0.2 * x[:, 2:3]
        return torch.cat([self.palette(x), self.structure(grey)], 1)


class Noise(nn.Module):
    """Units that answer to nothing with a name: the sine of fixed random projections of the pixels.

    (B, 3, 64, 64) -> (B, n, 16, 16) in 0..1. The projections' gain is high, so the finest grain decides
    where on the sine a picture lands; a second sine over the whole picture makes some pictures strong and
    silences most.
    """

    LOCAL_GAIN, GLOBAL_GAIN = 8.0, 0.6

    def __init__(self, units: int) -> None:
        super().__init__()
        cell = world.SIZE // GRID
        self.local = nn.Conv2d(3, units, cell, cell, bias=False)
        self.whole = nn.Conv2d(units, units, GRID, groups=units, bias=False)

    @torch.no_grad()
    def plant(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.local.weight.copy_(self.LOCAL_GAIN * torch.randn(self.local.weight.shape, generator=generator))
        self.whole.weight.copy_(self.GLOBAL_GAIN * torch.randn(self.whole.weight.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        local = torch.sin(self.local(x))
        strength = torch.relu(torch.sin(self.whole(local)) - 0.5) * 2  # (B, n, 1, 1)
        return strength * torch.relu(local)


class Planted(NamedTuple):
    """What one unit means."""

    kind: str
    """ "single", "conjunction", "union" or "noise"."""
    concepts: tuple[str, ...]
    """One; a union's two; none for noise."""


class PlantedNet(nn.Module):
    """The target. (B, 3, 64, 64) in -1..1 -> (B, units): the mean of each map of the layer `concepts`.

    `gates` holds each attribute (what is above a small floor) and each conjunction (the fuzzy "and" of two
    attributes in one cell: relu(a + b - 1)). `mix` keeps them and adds, for each union, its second half;
    `inhibit` quiets that half in pictures where the first half is found, so that the strongest pictures of a
    union show one half or the other and not both. `concepts` picks and adds up. All maps are at least 0.
    """

    FLOOR, INHIBITION = 0.08, 20.0

    def __init__(self, gates: int, mixed: int, noise: int, units: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.senses = Senses(widths, depth)
        self.noise = Noise(noise)
        self.gates = nn.Conv2d(len(ATTRIBUTES), gates, 1)
        self.mix = nn.Conv2d(gates, mixed, 1, bias=False)
        self.inhibit = nn.Conv2d(gates, mixed, 1, bias=False)
        self.concepts = nn.Sequential(nn.Conv2d(mixed + noise, units, 1, bias=False), nn.ReLU())

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) -> (B, units, 16, 16), what the layer `concepts` gives."""
        gates = torch.relu(self.gates(torch.sigmoid(self.senses(x))))
        mixed = torch.relu(self.mix(gates) - self.inhibit(gates.mean((2, 3), keepdim=True)))
        out: torch.Tensor = self.concepts(torch.cat([mixed, self.noise(x)], 1))
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maps(x).mean((2, 3))

    def picking(self) -> nn.Conv2d:
        """The convolution in `concepts`."""
        first = self.concepts[0]
        assert isinstance(first, nn.Conv2d)
        return first

    @classmethod
    def plant(
        cls,
        senses: Senses,
        units: Sequence[Planted],
        gains: Sequence[float],
        shape: dict[str, object],
        noise_seed: int = 2026,
    ) -> PlantedNet:
        """Set the weights by hand. `gains`: for each unit, how much a union's second half is multiplied by
        (1 elsewhere); `shape`: the widths and depth of `Senses`; `noise_seed` draws the noise units."""
        names = list(ATTRIBUTES)
        for name in (c for u in units for c in u.concepts):
            if name not in names:
                names.append(name)
        unions = [i for i, u in enumerate(units) if u.kind == "union"]
        silent = [i for i, u in enumerate(units) if u.kind == "noise"]
        mixed = len(names) + len(unions)
        net = cls(len(names), mixed, len(silent), len(units), **shape)  # type: ignore[arg-type]
        net.senses.load_state_dict(senses.state_dict())
        net.noise.plant(noise_seed)
        gates, mix, inhibit, out = (m.weight.data for m in (net.gates, net.mix, net.inhibit, net.picking()))
        for weight in (gates, mix, inhibit, out):
            weight.zero_()
        assert net.gates.bias is not None
        for row, name in enumerate(names):
            mix[row, row] = 1
            if name in ATTRIBUTES:
                gates[row, row], net.gates.bias.data[row] = 1 / (1 - cls.FLOOR), -cls.FLOOR / (1 - cls.FLOOR)
            else:
                first, second = (ATTRIBUTES.index(part) for part in name.split(" ", 1))
                gates[row, first] = gates[row, second] = 1
                net.gates.bias.data[row] = -1
        for at, i in enumerate(unions, start=len(names)):
            first, second = (names.index(c) for c in units[i].concepts)
            mix[at, second], inhibit[at, first] = 1, cls.INHIBITION
            out[i, first], out[i, at] = 1, gains[i]
        for i, unit in enumerate(units):
            if unit.kind in ("single", "conjunction"):
                out[i, names.index(unit.concepts[0])] = 1
        for at, i in enumerate(silent, start=mixed):
            out[i, at] = 1
        return net.eval()


def save(net: PlantedNet, folder: Path, shape: dict[str, object]) -> None:
    """Write config.json and model.safetensors (fp16)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "gates": net.gates.out_channels,
        "mixed": net.mix.out_channels,
        "noise": net.noise.local.out_channels,
        "units": net.picking().out_channels,
    }
    (folder / "config.json").write_text(json.dumps({"architecture": "PlantedNet", **sizes, **shape}, indent=1) + "\n")
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def load(folder: Path) -> PlantedNet:
    """Read what `save` wrote, as float32, in eval mode."""
    from safetensors.torch import load_file

    settings = json.loads((folder / "config.json").read_text())
    settings.pop("architecture")
    net = PlantedNet(**settings)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval()


def preprocess(image: Image) -> torch.Tensor:
    """RGB image of any size -> (3, 64, 64) float32 in -1..1."""
    import numpy as np
    from PIL.Image import Resampling

    if image.size != (world.SIZE, world.SIZE):
        image = image.resize((world.SIZE, world.SIZE), Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
