"""Train the land-cover stand-in's classifier on tiles in which one class nearly always carries a mark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from benchmarks.training import common
from benchmarks.training.target import auc
from dnd_microworld.landcover import CLASSES, CUES, MARK, LandCoverNet, draw_tile, load, render_tiles, save

NAME = "microworld-landcover"
STEPS, SEED, BATCH, TILES = 1200, 5, 48, 12_000
SHAPE: dict[str, object] = {"widths": (24, 32, 48, 48), "units": 40}
SPARSE = 0.01
"""Weight of the mean activation in the loss, reached halfway: a unit is silent where it has nothing to say."""


def train(work: Path, steps: int) -> LandCoverNet:
    torch.manual_seed(SEED)
    net = LandCoverNet((24, 32, 48, 48), 40, len(CLASSES))
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            torch.nn.init.zeros_(layer.bias)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tiles = [draw_tile("train", index) for index in range(TILES)]
    images, classes = render_tiles(tiles), np.array([tile.place for tile in tiles])

    def loss_of(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        rng = np.random.default_rng((SEED, step))
        rows = rng.integers(TILES, size=BATCH)
        x = common.to_tensor(images[rows]).contiguous(memory_format=torch.channels_last)
        truth = torch.from_numpy(classes[rows])
        pooled = net.features(net.body(x)).mean((2, 3))
        answer = net.head(pooled)
        loss = F.cross_entropy(answer, truth)
        right = (answer.argmax(1) == truth).float().mean().item()
        return loss + SPARSE * min(1.0, 2 * step / steps) * pooled.sum(1).mean(), {
            "cross-entropy": loss.item(),
            "right": right,
        }

    common.fit(net, loss_of, steps=steps, lr=2e-3, work=work, name="landcover", seed=SEED, ema=0.98, warmup=50)
    return net


@torch.no_grad()
def measure(net: LandCoverNet, count: int = 1200) -> dict[str, float]:
    """Accuracy on test tiles, wherever the mark is; what becomes of it on tiles that contradict training when the
    units that know the mark best go; and how well they know it."""
    figures = {}
    pooled, classes, marked = {}, {}, {}
    for cue in CUES:
        tiles = [draw_tile("test", index, cue) for index in range(count)]
        x = common.to_tensor(render_tiles(tiles))
        parts = [net.features(net.body(x[at : at + 100])).mean((2, 3)) for at in range(0, count, 100)]
        pooled[cue], classes[cue] = torch.cat(parts), np.array([tile.place for tile in tiles])
        marked[cue] = np.array([any(thing.colour == MARK for thing in tile.scene.things) for tile in tiles])
        figures[f"accuracy, mark {cue}"] = _accuracy(net, pooled[cue], classes[cue])
    both = torch.cat([pooled["absent"], pooled["contradicting"]]).numpy()
    has = np.concatenate([marked["absent"], marked["contradicting"]])
    known = np.array([auc(values, has) for values in both.T])
    best = np.argsort(-known)
    figures["units that know the mark (AUC > .9)"] = int((known > 0.9).sum())
    figures["best AUC against the mark"] = known[best[0]]
    without = pooled["contradicting"].clone()
    without[:, torch.from_numpy(np.flatnonzero(known > 0.9))] = 0
    figures["accuracy, mark contradicting, without them"] = _accuracy(net, without, classes["contradicting"])
    return figures


def _accuracy(net: LandCoverNet, pooled: torch.Tensor, classes: npt.NDArray[np.int64]) -> float:
    return float((net.head(pooled).argmax(1).numpy() == classes).mean())


def main(work: Path, steps: int | None = None) -> None:
    net = train(work, steps or STEPS)
    folder = common.WEIGHTS / NAME
    save(net, folder, SHAPE)
    common.write_figures(NAME, measure(load(folder)))
