"""Sharper senses than the shipped target's, with the same units wired over them.

The shipped senses find a shape a little beside it as well: in the notches of a star of another colour, where the
background may have the wanted one. Such cells are few, but a unit is the mean over the picture, and a star is small. So
these senses also pay for what conjunctions make of their maps. `purity` on scenes of the validation split, and no
label, has chosen the recipe.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.training import attributes, target
from dnd_microworld import FIRST_SHARP, target_model
from dnd_microworld.target import COLOURS, TEXTURES

NAME = target_model(FIRST_SHARP)
STEPS, SEED = 4800, 12


def conjunction_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """How far what conjunctions make of cell logits (B, 21, h, w) is from what they make of shares in 0..1: the sum of
    the differences as a part of what it ought to be, of coloured textures and of coloured shapes."""
    said, true = (
        torch.relu(cells[:, : len(COLOURS), None] + cells[:, None, len(COLOURS) :] - 1)
        for cells in (logits.sigmoid(), shares)
    )
    parts = (slice(0, len(TEXTURES)), slice(len(TEXTURES), None))
    each = [(said[:, :, p] - true[:, :, p]).abs().sum() / true[:, :, p].sum().clamp(min=1) for p in parts]
    return torch.stack(each).sum()


def cell_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return attributes.cell_loss(logits, shares) + conjunction_loss(logits, shares)


def main(work: Path, steps: int | None = None) -> None:
    target.wire(NAME, target.senses(work, steps or STEPS, name="sharp", seed=SEED, cell_loss=cell_loss))
