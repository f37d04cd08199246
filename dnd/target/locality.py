"""Whether the cells of what might be a map follow the places of the input: boxes of a made-up image are changed one at
a time, and what moves must lie where the box is.

CNNs, Swins and ViTs pass this with random weights, too. Tokens in another order, queries, heads beside tokens and
channels beside channels do not. Where a box moves all cells alike, nothing can be concluded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BOXES = 15
"""Changed in an image, each in a copy of it: with the image itself they are a batch."""
EDGES = (8, 4)
"""For each made-up image, how many boxes go along an edge: small cells and large ones are to be met."""
_NEAR, _ALIKE = 0.5, 0.6
_DIFFUSE = 0.9


@dataclass(frozen=True)
class Evidence:
    """What the boxes say of a map."""

    distance: float
    """From a box to the cell that moves most, by the worse axis: 0 is at the box, 1 is chance."""
    correlation: float
    """Of the middle of what moves with the middle of the box, by the worse axis."""
    spread: float
    """Share of the cells that a box moves: 1 where it moves all alike."""
    silent: bool
    """Most boxes move nothing."""

    @property
    def follows(self) -> bool:
        return not self.silent and (self.distance < _NEAR or self.correlation > _ALIKE)

    @property
    def undecided(self) -> bool:
        return self.silent or (not self.follows and self.spread > _DIFFUSE)


def changed(image: torch.Tensor, edge: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From one image (C, H, W) a batch of it with noise, unchanged and with one box changed each (16, C, H, W), and the
    boxes' middles (15, 2): y, x in fractions. Boxes are 1/`edge` of the image's edges."""
    chance = torch.Generator().manual_seed(edge)
    scale = float(image.float().std()) or 1.0
    noise = torch.randn((2, *image.shape), generator=chance) * scale
    plain = image + 0.5 * noise[0]
    other = plain.mean() + 2 * noise[1]
    batch = plain.repeat(BOXES + 1, 1, 1, 1)
    middles = torch.empty(BOXES, 2)
    for row, cell in enumerate(torch.randperm(edge**2, generator=chance)[:BOXES].tolist()):
        slices = []
        for axis, (place, length) in enumerate(zip(divmod(cell, edge), image.shape[1:], strict=True)):
            first = place * length // edge
            last = max(first + 1, (place + 1) * length // edge)
            slices.append(slice(first, last))
            middles[row, axis] = (first + last) / 2 / length
        batch[row + 1][:, slices[0], slices[1]] = other[:, slices[0], slices[1]]
    return batch, middles


def response(units: torch.Tensor) -> torch.Tensor:
    """How much each place of a layer moves with each box: units (16, U, ...) of a batch of `changed` -> (15, ...)."""
    values = units.detach().float().nan_to_num(0, 0, 0)
    moved = (values[1:] - values[:1]).square().sum(1).double().cpu()
    return (moved / (moved.mean() + 1e-30)).sqrt()


def weigh(moved: torch.Tensor, middles: torch.Tensor) -> Evidence:
    """`moved` (n, h, w) as of `response`, `middles` (n, 2)."""
    usual = moved.mean(0)
    strength = moved / (usual + usual.mean() + 1e-30)  # some cells move with everything
    heard = strength.flatten(1).amax(1) > 0
    if heard.sum() * 2 < len(moved):
        return Evidence(1, 0, 1, True)
    strength, middles = strength[heard], middles[heard].double()
    whole = strength.sum((1, 2))
    spread = whole.square() / strength.square().sum((1, 2)) / usual.numel()
    height, width = usual.shape
    best = strength.flatten(1).argmax(1)
    distance, correlation = 0.0, 1.0
    for axis, (length, place) in enumerate(((height, best // width), (width, best % width))):
        if length == 1:
            continue
        cells = (torch.arange(length, dtype=torch.float64) + 0.5) / length
        at = middles[:, axis]
        by_chance = (cells[None] - at[:, None]).abs().mean()
        distance = max(distance, float((cells[place] - at).abs().mean() / by_chance))
        centre = (strength.sum(2 - axis) @ cells) / whole
        correlation = min(correlation, float(torch.corrcoef(torch.stack([centre, at]))[0, 1].nan_to_num()))
    return Evidence(distance, correlation, float(spread.median()), False)
