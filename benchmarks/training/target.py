"""Train the target's senses on the training split, plant its units, and measure them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.training import attributes, common
from dnd_microworld import HERE, world
from dnd_microworld.target import ATTRIBUTES, SHAPES, Planted, PlantedNet, Senses, load, save

STEPS, SEED = 2400, 11
SHAPE: dict[str, object] = {"widths": (48, 64, 96), "depth": 3}
NAME = "microworld-target"
TRUTH = HERE / "truth.csv"
SCENES_FOR_GAINS, RANK_FOR_GAINS = 12_000, 18
"""The sixth strongest of a probing set's 4000, from three times as many so that chance weighs less."""

CONJUNCTIONS = (
    *("red star", "green heart", "cyan circle", "yellow ring"),  # held out of training
    *("blue star", "orange heart", "purple square", "white triangle", "red cross", "green ring"),
    *("yellow circle", "cyan square", "blue triangle"),
    *("blue dots", "orange checkerboard", "red grid"),  # held out of training
    *("green dots", "yellow horizontal stripes", "cyan vertical stripes", "white diagonal stripes"),
    *("purple checkerboard", "blue grid", "orange horizontal stripes", "white dots"),
)
UNIONS = (
    *(("red", "heart"), ("blue", "star"), ("yellow", "cross"), ("white", "triangle")),
    *(("grid", "circle"), ("checkerboard", "ring"), ("dots", "square"), ("horizontal stripes", "triangle")),
    *(("purple", "vertical stripes"), ("cyan", "diagonal stripes"), ("green", "dots")),
    *(("grid", "green ring"), ("blue dots", "heart"), ("diagonal stripes", "purple square")),
)
"""Each with the half that fills more of a picture first."""
NOISE = 12


def planted_units() -> list[Planted]:
    """The units in their order, which is shuffled so that an index tells nothing."""
    units = [Planted("single", (a,)) for a in ATTRIBUTES]
    units += [Planted("conjunction", (c,)) for c in CONJUNCTIONS]
    units += [Planted("union", u) for u in UNIONS]
    units += [Planted("noise", ())] * NOISE
    return [units[i] for i in np.random.default_rng(SEED).permutation(len(units))]


def senses(
    work: Path,
    steps: int,
    *,
    name: str = "senses",
    seed: int = SEED,
    cell_loss: attributes.CellLoss = attributes.cell_loss,
) -> Senses:
    """The trained senses; the training is kept in `work/NAME.pt`."""
    torch.manual_seed(seed)
    net = Senses(**SHAPE)  # type: ignore[arg-type]
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        return attributes.train_step(net, "train", step, seed, cell_loss)[0], {}

    common.fit(net, loss_of, steps=steps, lr=3e-3, work=work, name=name, seed=seed, warmup=80, ema=0.98, log_every=50)
    return net


@torch.no_grad()
def pooled(net: PlantedNet, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """(N, 64, 64, 3) -> (N, units) mean-pooled activations."""
    parts = [net(common.to_tensor(images[at : at + 100])).numpy() for at in range(0, len(images), 100)]
    return np.concatenate(parts)


def answers(net: PlantedNet, scenes: Sequence[world.Scene]) -> npt.NDArray[np.float32]:
    """(scenes, units), the scenes drawn 500 at a time."""
    starts = range(0, len(scenes), 500)
    return np.concatenate([pooled(net, world.render(scenes[at : at + 500]).images) for at in starts])


def auc(scores: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> float:
    """How often a scene with the concept drives the unit more than one without."""
    others, chosen = np.sort(scores[~positive]), scores[positive]
    below = np.searchsorted(others, chosen, "left") + np.searchsorted(others, chosen, "right")
    return float(below.mean() / (2 * others.size))


def halves(net: PlantedNet, units: Sequence[Planted]) -> dict[int, tuple[npt.NDArray[np.float32], ...]]:
    """Of each union, by its place: activations on scenes that show its first half, and on the others; strongest first.
    Where each half is multiplied by 1, the others are led by those with the second half."""
    scenes = world.draw_scenes("validation", 0, SCENES_FOR_GAINS)
    shown = [world.concepts(s) for s in scenes]
    acts = answers(net, scenes)
    found: dict[int, tuple[npt.NDArray[np.float32], ...]] = {}
    for i, unit in enumerate(units):
        if unit.kind == "union":
            has = np.array([unit.concepts[0] in c for c in shown])
            found[i] = tuple(np.sort(acts[where, i])[::-1] for where in (has, ~has))
    return found


def union_gains(net: PlantedNet, units: Sequence[Planted]) -> list[float]:
    """For each union, what to multiply its second half by, so that both halves are among the strongest pictures:
    the picture of rank `RANK_FOR_GAINS` of each half alone is then equally strong."""
    gains = [1.0] * len(units)
    for i, strongest in halves(net, units).items():
        first, second = (float(one[RANK_FOR_GAINS - 1]) for one in strongest)
        gains[i] = first / second
        print(f"{' | '.join(units[i].concepts)}: strong pictures {first:.3f} | {second:.3f}", flush=True)
    return gains


def measure(net: PlantedNet, units: Sequence[Planted], count: int = 6000) -> dict[str, float]:
    """AUC of each unit against its concept on test scenes, and how near to nothing the noise units come."""
    scenes = world.draw_scenes("test", 0, count)
    shown = [world.concepts(s) for s in scenes]
    acts = answers(net, scenes)
    names = sorted(set().union(*shown))
    has = {name: np.array([name in c for c in shown]) for name in names}
    aucs: dict[str, list[float]] = {"single": [], "conjunction": [], "held-out": [], "union": []}
    held = {f"{c} {x}" for c, x in world.HELD_OUT_OBJECTS | world.HELD_OUT_BACKGROUNDS}
    noise = []
    for i, unit in enumerate(units):
        if unit.kind == "noise":
            noise += [abs(auc(acts[:, i], has[a]) - 0.5) for a in (*ATTRIBUTES, "plain") if a in has]
            continue
        value = auc(acts[:, i], np.any([has[c] for c in unit.concepts], 0))
        aucs["held-out" if unit.concepts[0] in held and unit.kind == "conjunction" else unit.kind].append(value)
        if value < 0.97:
            print(f"unit {i} {unit.concepts}: AUC {value:.4f}", flush=True)
    figures = {"units": len(units), "noise max |AUC - .5|": max(noise)}
    for kind, values in aucs.items():
        if values:
            figures |= {f"{kind} AUC mean": float(np.mean(values)), f"{kind} AUC min": min(values)}
    return figures


def purity(senses: Senses, split: str = "test", count: int = 4000) -> dict[str, float]:
    """Of the ten scenes of `count` that a conjunction finds strongest, how many show it: the mean and the worst of all
    coloured textures and of all coloured shapes, and the mean of each shape."""
    units = [*(Planted("conjunction", (pair,)) for pair in attributes.PAIRS), Planted("noise", ())]
    scenes = world.draw_scenes(split, 0, count)
    acts = answers(PlantedNet.plant(senses, units, [1.0] * len(units), SHAPE), scenes)
    shown = [world.concepts(scene) for scene in scenes]
    found: dict[str, list[float]] = {}
    for i, pair in enumerate(attributes.PAIRS):
        share = float(np.mean([pair in shown[at] for at in np.argsort(-acts[:, i], kind="stable")[:10]]))
        part = pair.split(" ", 1)[1]
        for group in ("shape", part) if part in SHAPES else ("texture",):
            found.setdefault(group, []).append(share)
    figures = {f"purity, coloured {group}": float(np.mean(shares)) for group, shares in found.items()}
    return figures | {f"purity, worst coloured {group}": min(found[group]) for group in ("texture", "shape")}


def wire(name: str, body: Senses) -> list[Planted]:
    """Write the target of these senses and its figures. The units."""
    units, folder = planted_units(), common.WEIGHTS / name
    gains = union_gains(PlantedNet.plant(body, units, [1.0] * len(units), SHAPE), units)
    save(PlantedNet.plant(body, units, gains, SHAPE), folder, SHAPE)
    net = load(folder)
    common.write_figures(name, measure(net, units) | purity(net.senses))
    return units


def main(work: Path, steps: int | None = None) -> None:
    units = wire(NAME, senses(work, steps or STEPS))
    with TRUTH.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("layer", "unit", "kind", "concept"))
        writer.writerows(("concepts", i, u.kind, " | ".join(u.concepts)) for i, u in enumerate(units))
