"""A sparse autoencoder of the target's hidden layer, with what its latents mean; and directions, planted by a matrix.

The layer sees no colour, so that its latents can mean textures and shapes. What one means is measured, not planned: a
concept counts as its meaning where scenes that show it drive the latent more than others (`AUC`), its strongest cells
lie on the concept's mask (`INSIDE`), and the same concept comes first on scenes of another split. The other latents are
left out of the truth.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.training import common
from benchmarks.training.target import auc
from dnd.target.sae import read_sae
from dnd_microworld import HERE, world
from dnd_microworld.target import GRID, SHAPES, TEXTURES, PlantedNet, load

LAYER = "senses.structure.merge"
FOLDER = HERE / "latents"
FEATURES, LATENTS, KEPT = 64, 128, 4
STEPS, ROWS, SEED = 2000, 2048, 17
SCENES, CELLS = 4000, 96
"""To train on, and cells of each."""
AUC, INSIDE, STRONGEST = 0.95, 0.6, 0.01
"""`STRONGEST` of all cells are looked at for `INSIDE`."""
_IDLE = 50
"""Steps without firing after which a latent learns from what the others leave."""


class Autoencoder(nn.Module):
    """TopK, as SAELens names and computes it."""

    def __init__(self, mean: torch.Tensor) -> None:
        super().__init__()
        decoder = nn.functional.normalize(torch.randn(LATENTS, FEATURES), dim=1)
        self.W_enc, self.b_enc = nn.Parameter(decoder.T.clone()), nn.Parameter(torch.zeros(LATENTS))
        self.W_dec, self.b_dec = nn.Parameter(decoder.clone()), nn.Parameter(mean.clone())
        self.register_buffer("idle", torch.zeros(LATENTS))

    def loss(self, x: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, float]]:
        """Of features (B, C)."""
        decoder = nn.functional.normalize(self.W_dec, dim=1)
        before = (x - self.b_dec) @ self.W_enc + self.b_enc
        latents = _kept(before, KEPT)
        left = x - self.b_dec - latents @ decoder
        assert isinstance(self.idle, torch.Tensor)
        self.idle = torch.where((latents > 0).any(0), 0, self.idle + 1)
        dead, scale = self.idle > _IDLE, x.var(0).sum()
        loss = left.pow(2).sum(1).mean() / scale
        if dead.any():
            others = _kept(before.masked_fill(~dead, -torch.inf), min(32, int(dead.sum())))
            loss = loss + (left.detach() - others @ decoder).pow(2).sum(1).mean() / scale / 16
        return loss, {"idle": float(dead.sum())}


def _kept(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k highest of each row, cut off below zero."""
    highest, places = values.topk(k, -1)
    return torch.zeros_like(values).scatter(-1, places, highest.relu())


@torch.no_grad()
def features(net: PlantedNet, scenes: Sequence[world.Scene]) -> torch.Tensor:
    """(N, 64, 16, 16) of the layer."""
    found: list[torch.Tensor] = []
    handle = net.get_submodule(LAYER).register_forward_hook(lambda module, inputs, output: found.append(output.clone()))
    with handle:
        for at in range(0, len(scenes), 100):
            net.senses(common.to_tensor(world.render(scenes[at : at + 100]).images))
    return torch.cat(found)


def train(net: PlantedNet, work: Path, steps: int | None) -> Autoencoder:
    maps = features(net, world.draw_scenes("train", 0, SCENES)).flatten(2).transpose(1, 2)  # (N, 256, 64)
    generator = torch.Generator().manual_seed(SEED)
    cells = torch.rand(maps.shape[:2], generator=generator).argsort(1)[:, :CELLS]
    rows = maps.gather(1, cells[:, :, None].expand(-1, -1, FEATURES)).flatten(0, 1)
    torch.manual_seed(SEED)
    model = Autoencoder(rows.mean(0))

    def loss_of(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        return model.loss(rows[torch.randint(len(rows), (ROWS,))])

    common.fit(model, loss_of, steps=steps or STEPS, lr=2e-3, work=work, name="latents", seed=SEED, weight_decay=0.0)
    return model


def save(model: Autoencoder) -> None:
    FOLDER.mkdir(exist_ok=True)
    config = {"architecture": "topk", "d_in": FEATURES, "d_sae": LATENTS, "k": KEPT, "dtype": "float32"}
    config |= {"apply_b_dec_to_input": True, "normalize_activations": "none"}
    (FOLDER / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = {name: value.detach().contiguous().clone() for name, value in model.named_parameters()}
    tensors["W_dec"] = nn.functional.normalize(tensors["W_dec"], dim=1)
    save_file(tensors, FOLDER / "sae_weights.safetensors")


def plant_directions(net: PlantedNet) -> list[str]:
    """Write the rows that the target itself reads textures and shapes by, in another order; their names."""
    head = net.get_submodule("senses.structure.head")
    assert isinstance(head, nn.Conv2d)
    assert head.bias is not None
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(head.out_channels))
    rows, bias = head.weight.detach().flatten(1)[order], head.bias.detach()[order]
    save_file({"directions": rows.contiguous(), "bias": bias.contiguous()}, FOLDER / "directions.safetensors")
    return [(*TEXTURES, *SHAPES)[i] for i in order.tolist()]


class Seen:
    """Scenes with what they show, to measure meanings on."""

    def __init__(self, net: PlantedNet, split: str, count: int = 1500) -> None:
        scenes = world.draw_scenes(split, 0, count)
        owners = world.render(scenes).owners
        self.features = features(net, scenes)
        shown = [world.concepts(scene) for scene in scenes]
        self.names = sorted(set().union(*shown))
        self.has = {name: np.array([name in one for one in shown]) for name in self.names}
        self.masks = {name: np.zeros((count, GRID, GRID), np.bool_) for name in self.names}
        for at, scene in enumerate(scenes):
            for name in shown[at]:
                cells = world.concept_mask(scene, owners[at], name).reshape(GRID, -1, GRID, world.SIZE // GRID)
                self.masks[name][at] = cells.mean((1, 3)) > 0.5

    def meaning(self, maps: npt.NDArray[np.float32]) -> tuple[str, float, float]:
        """Of a unit with maps (N, 16, 16): the concept that drives it most, its AUC, and the share of the strongest
        cells that lie on its mask."""
        pooled = maps.mean((1, 2))
        aucs = {name: auc(pooled, self.has[name]) for name in self.names}
        name = max(aucs, key=lambda one: aucs[one])
        strong = maps > max(0.0, float(np.quantile(maps, 1 - STRONGEST)))
        return name, aucs[name], float(self.masks[name][strong].mean()) if strong.any() else 0.0


def main(work: Path, steps: int | None = None) -> None:
    net = load(common.WEIGHTS / "microworld-target")
    save(train(net, work, steps))
    named = plant_directions(net)
    latents = read_sae(str(FOLDER))
    chosen, checked = Seen(net, "validation"), Seen(net, "test")
    maps, others = (latents.of(seen.features).numpy() for seen in (chosen, checked))
    kept = []
    for unit in range(LATENTS):
        name, first, inside = chosen.meaning(maps[:, unit])
        if first >= AUC and inside >= INSIDE:
            again, second, there = checked.meaning(others[:, unit])
            if again == name:
                kept.append((LAYER, unit, "latent", name, round(first, 3), round(second, 3), round(there, 3)))
    with (FOLDER / "latents.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("layer", "unit", "kind", "concept", "auc", "auc on test scenes", "inside on test scenes"))
        writer.writerows(kept)
    with (FOLDER / "directions.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("layer", "unit", "kind", "concept"))
        writer.writerows((LAYER, unit, "direction", name) for unit, name in enumerate(named))
    print(f"{len(kept)} of {LATENTS} latents have a meaning, the same on scenes of two splits", flush=True)
