"""Nets that say where each colour, texture and shape is: the target's trunk, and the judge of generated images.

The trunk sees the training split alone. The judge is another, wider net that sees every combination, so that
it can measure pictures of held-out ones; it is a measuring instrument and is not shipped.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from benchmarks.training import common
from dnd_microworld import world
from dnd_microworld.target import ATTRIBUTES, GRID, SHAPES, Trunk

BATCH = 32
JUDGE_WIDTHS = (64, 96, 128)
JUDGE_STEPS = 1500
JUDGE_FILE = "judge.safetensors"
PAIRS = tuple(f"{c} {x}" for c in world.COLOURS for x in (*world.TEXTURES[1:], *SHAPES))
"""Every conjunction: "red dots", "red star"."""


def _attributes_of(scene: world.Scene) -> npt.NDArray[np.float32]:
    """(3, 21): which attributes the background and the two things have."""
    table = np.zeros((3, len(ATTRIBUTES)), np.float32)
    for row, names in enumerate([(scene.colour, scene.texture), *((t.colour, t.shape) for t in scene.things)]):
        for name in names:
            if name != "plain":
                table[row, ATTRIBUTES.index(name)] = 1
    return table


def random_box(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) with sides of 24 to 64 pixels, at most twice as long as wide or the reverse."""
    width = int(rng.integers(24, world.SIZE + 1))
    height = int(np.clip(width * np.exp(rng.uniform(-0.6, 0.6)), 24, world.SIZE))
    left, top = int(rng.integers(world.SIZE - width + 1)), int(rng.integers(world.SIZE - height + 1))
    return left, top, left + width, top + height


def soften(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture as it looks after a stay at 32x32, the generator's own size; sometimes as a JPEG."""
    if rng.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(40, 90)))
        image = Image.open(file).convert("RGB")
    return image.resize((32, 32), Image.Resampling.BOX).resize((world.SIZE, world.SIZE), Image.Resampling.BICUBIC)


class Examples(NamedTuple):
    images: npt.NDArray[np.uint8]
    """(B, 64, 64, 3)."""
    shares: npt.NDArray[np.float32]
    """(B, 21, 16, 16), 0..1: how much of each cell has the attribute."""
    present: npt.NDArray[np.float32]
    """(B, 21): 1 or 0, or NaN where it is open to dispute (a cut-off thing, a sliver of background)."""
    seen: npt.NDArray[np.float32]
    """(B, 3): the same for the background and the scene's two things."""


def examples(
    scenes: Sequence[world.Scene], rng: np.random.Generator, *, crop: float = 0.5, blur: float = 0.35
) -> Examples:
    """Pictures of scenes and of crops of them, with what they show."""
    drawn = world.render(scenes)
    images = drawn.images.copy()
    masks = (drawn.owners[:, None] == np.arange(3, dtype=np.uint8)[:, None, None]).astype(np.float32)  # (B, 3, 64, 64)
    cells = np.empty((len(scenes), 3, GRID, GRID), np.float32)
    tables = np.stack([_attributes_of(s) for s in scenes]) if scenes else np.zeros((0, 3, len(ATTRIBUTES)), np.float32)
    present = np.zeros((len(scenes), len(ATTRIBUTES)), np.float32)
    status = np.zeros((len(scenes), 3), np.float32)
    for i in range(len(scenes)):
        box = random_box(rng) if rng.random() < crop else (0, 0, world.SIZE, world.SIZE)
        image = Image.fromarray(drawn.images[i])
        if box != (0, 0, world.SIZE, world.SIZE):
            way = Image.Resampling.BICUBIC if rng.random() < 0.5 else Image.Resampling.BILINEAR
            image = image.resize((world.SIZE, world.SIZE), way, box=box)
        if rng.random() < blur:
            image = soften(image, rng)
        images[i] = np.asarray(image)
        left, top, right, bottom = box
        inside = masks[i, :, top:bottom, left:right]
        cells[i] = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(inside)), GRID).numpy()
        seen, whole, fills = inside.sum((1, 2)), masks[i].sum((1, 2)), inside.mean((1, 2))
        sure = [fills[0] > 0.15, *(seen[k] > 0.7 * whole[k] and whole[k] > 0 for k in (1, 2))]
        maybe = [fills[0] > 0.03, *(seen[k] > 0.15 * whole[k] and whole[k] > 0 for k in (1, 2))]
        certain = np.max(tables[i] * np.array(sure, np.float32)[:, None], 0)
        possible = np.max(tables[i] * np.array(maybe, np.float32)[:, None], 0)
        status[i] = np.where(sure, 1, np.where(maybe, np.nan, 0))
        present[i] = np.where(certain > 0, 1, np.where(possible > 0, np.nan, 0))
    shares = np.einsum("bkhw,bka->bahw", cells, tables)
    return Examples(images, np.minimum(shares, 1), present, status)


def cell_loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """How far cell logits (B, 21, h, w) are from shares in 0..1.

    Binary cross-entropy for every attribute, and among the colours, the textures and the shapes the
    cross-entropy of which one it is, wherever there is one: the latter is what teaches shapes.
    """
    loss = F.binary_cross_entropy_with_logits(logits, shares)
    at = 0
    for width in (len(world.COLOURS), len(world.TEXTURES) - 1, len(SHAPES)):
        goal = shares[:, at : at + width]
        each = -(goal * F.log_softmax(logits[:, at : at + width], 1)).sum(1)
        loss = loss + 0.3 * each.sum() / goal.sum().clamp(min=1)
        at += width
    return loss


def scenes_for(split: str, step: int) -> list[world.Scene]:
    """One batch of new scenes; "all" mixes splits so that every combination occurs."""
    if split != "all":
        return world.draw_scenes(split, step * BATCH, BATCH)
    half = BATCH // 2
    return world.draw_scenes("train", 5_000_000 + step * half, half) + world.draw_scenes(
        "validation", 5_000_000 + step * half, half
    )


class Judge(nn.Module):
    """The wide trunk and, per attribute, a logistic curve over its strongest cells."""

    STRONGEST = 8

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(JUDGE_WIDTHS)
        self.scale = nn.Parameter(torch.ones(len(ATTRIBUTES)))
        self.bias = nn.Parameter(torch.zeros(len(ATTRIBUTES)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, 3, 64, 64) in -1..1 -> cell logits (B, 21, 16, 16), presence logits (B, 21)."""
        logits = self.trunk(x).float()
        top = logits.flatten(2).topk(self.STRONGEST, 2).values.mean(2)
        return logits, top * self.scale + self.bias


CellLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of cell logits (B, 21, h, w) and shares in 0..1."""


def train_step(
    net: nn.Module, split: str, step: int, seed: int, loss_of: CellLoss = cell_loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of the cells, and the loss of presence (a judge's; else 0), over one batch."""
    rng = np.random.default_rng((seed, step))
    images, shares, present, _ = examples(scenes_for(split, step), rng)
    x = common.to_tensor(images).contiguous(memory_format=torch.channels_last)
    x = x * (1 + 0.06 * torch.randn(BATCH, 1, 1, 1)) + 0.02 * torch.rand(BATCH, 1, 1, 1) * torch.randn_like(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
    logits, presence = out if isinstance(out, tuple) else (out, None)
    loss = loss_of(logits.float(), torch.from_numpy(shares))
    if presence is None:
        return loss, torch.zeros(())
    goal = torch.from_numpy(present)
    known = ~goal.isnan()
    return loss, F.binary_cross_entropy_with_logits(presence[known], goal[known])


def main(work: Path, steps: int | None = None) -> None:
    """Train the judge into `work/judge.safetensors`."""
    torch.manual_seed(77)
    net = Judge()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        cells, presence = train_step(net, "all", step, 77)
        return cells + 0.3 * presence, {"presence": presence.item()}

    count = steps or JUDGE_STEPS
    common.fit(net, loss_of, steps=count, lr=3e-3, work=work, name="judge", seed=77, warmup=80, ema=0.98, log_every=25)
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, work / JUDGE_FILE)
    report(work / JUDGE_FILE)


def report(path: Path) -> None:
    """Print the judge's accuracy on scenes of the test split, whole, cropped and from 32x32."""
    for name, crop, blur in (("whole", 0.0, 0.0), ("from 32x32", 0.0, 1.0), ("crops", 1.0, 0.0)):
        scenes = world.draw_scenes("test", 900_000, 1000)
        images, _, present, _ = examples(scenes, np.random.default_rng(5), crop=crop, blur=blur)
        said = judge(images, path)
        for kind, names in (("colour", world.COLOURS), ("texture", world.TEXTURES[1:]), ("shape", SHAPES)):
            columns = [ATTRIBUTES.index(n) for n in names]
            truth, guess = present[:, columns], np.stack([said[n] for n in names], 1)
            known = ~np.isnan(truth)
            hit, yes = (guess > 0.5) == (truth > 0.5), known & (truth > 0.5)
            print(f"judge {name} {kind}: accuracy {hit[known].mean():.4f}  recall {hit[yes].mean():.4f}", flush=True)
        if crop == 0:
            there = np.array([[p in world.concepts(s) for p in PAIRS] for s in scenes])
            found = np.stack([said[p] for p in PAIRS], 1) > 0.5
            print(f"judge {name} pairs: recall {found[there].mean():.4f}  false {found[~there].mean():.5f}", flush=True)


@cache
def _judge_net(path: Path) -> Judge:
    net = Judge()
    net.load_state_dict(load_file(path))
    return net.eval()


@torch.no_grad()
def judge(
    images: npt.NDArray[np.uint8], path: Path = Path(".train") / JUDGE_FILE
) -> dict[str, npt.NDArray[np.float32]]:
    """How likely each picture shows each attribute and each pair: {"red": (N,), "star": ..., "red star": ...}, 0..1.

    images: (N, H, W, 3) of any size. Above one half means: it is there.
    """
    net = _judge_net(path.resolve())
    singles, pairs = [], []
    for at in range(0, len(images), 100):
        part = [
            Image.fromarray(i).resize((world.SIZE, world.SIZE), Image.Resampling.BICUBIC) for i in images[at : at + 100]
        ]
        logits, presence = net(common.to_tensor(np.stack([np.asarray(i) for i in part])))
        cells, there = torch.sigmoid(logits), torch.sigmoid(presence)
        singles.append(there)
        columns = []
        for pair in PAIRS:
            first, second = (ATTRIBUTES.index(p) for p in pair.split(" ", 1))
            both = (cells[:, first] * cells[:, second]).flatten(1).topk(Judge.STRONGEST, 1).values.mean(1)
            columns.append(torch.minimum(torch.minimum(there[:, first], there[:, second]), (both * 1.4).clamp(max=1)))
        pairs.append(torch.stack(columns, 1))
    first_columns = torch.cat(singles).numpy() if singles else np.zeros((0, len(ATTRIBUTES)), np.float32)
    more = torch.cat(pairs).numpy() if pairs else np.zeros((0, len(PAIRS)), np.float32)
    return {
        **{n: first_columns[:, i] for i, n in enumerate(ATTRIBUTES)},
        **{n: more[:, i] for i, n in enumerate(PAIRS)},
    }
