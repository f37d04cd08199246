"""The microworld's sparse autoencoder and directions: units mean what the truth files say, by the masks of scenes."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from dnd.api import Label, Runtime, Unit, auc
from dnd.config.read import read_run
from dnd.config.run import LayerSettings
from dnd.pipeline.build import Builder
from dnd.plugin.registry import Registry
from dnd.target.hooked import HookedTarget
from dnd_microworld import HERE, world
from dnd_microworld.target import load, preprocess

LAYER = "senses.structure.merge"
FOLDER = "package:dnd_microworld/latents"


@pytest.mark.parametrize(
    ("reads", "truth", "count"),
    [
        (LayerSettings(sae=FOLDER), "latents.csv", 42),
        (LayerSettings(directions=f"{FOLDER}/directions.safetensors", relu=True), "directions.csv", 13),
    ],
)
def test_units_mean_what_the_masks_show(reads: LayerSettings, truth: str, count: int) -> None:
    scenes = world.draw_scenes("test", 5000, 480)
    rendered = world.render(scenes)
    batch = torch.stack([preprocess(Image.fromarray(image)) for image in rendered.images])
    rows = list(csv.DictReader((HERE / "latents" / truth).open()))
    units = [int(row["unit"]) for row in rows]
    assert len(rows) == count
    assert {row["layer"] for row in rows} == {LAYER}
    assert len({row["concept"] for row in rows}) == 13
    with HookedTarget(load(HERE / "weights/microworld-target"), preprocess, [LAYER], reads=reads) as hooked:
        parts = [
            hooked.observe(part, {LAYER: [(row, unit) for row in range(len(part)) for unit in units]})
            for part in batch.split(16)
        ]
    pooled = torch.cat([found[LAYER] for found, _ in parts]).numpy()
    maps = np.concatenate([found[LAYER] for _, found in parts]).reshape(len(batch), count, 16, 16)
    aucs, inside = [], []
    for place, row in enumerate(rows):
        shows = np.array([row["concept"] in world.concepts(scene) for scene in scenes])
        aucs.append(auc(pooled[shows, units[place]], pooled[~shows, units[place]]))
        masks = np.stack([
            world.concept_mask(scene, owners, row["concept"]).reshape(16, 4, 16, 4).mean((1, 3)) > 0.5
            for scene, owners in zip(scenes, rendered.owners, strict=True)
        ])  # fmt: skip
        strongest = maps[:, place] > np.quantile(maps[:, place], 0.99)
        inside.append(masks[strongest].mean() / masks.mean())
    assert min(aucs) > 0.9
    assert np.mean(aucs) > 0.97
    assert min(inside) > 2, "strong cells lie on the concept more than others do"


@pytest.mark.parametrize(("runfile", "kind"), [("latents", "latent"), ("directions", "direction")])
def test_labels_of_latents_and_directions_are_graded(runfile: str, kind: str) -> None:
    truth = {int(row["unit"]): row["concept"] for row in csv.DictReader((HERE / f"latents/{runfile}.csv").open())}
    registry = Registry.load()
    target = Builder(registry, Runtime("cpu", lambda name: HERE)).target(read_run(runfile, registry).target)
    assert target
    right, wrong = (
        Label(Unit(LAYER, unit), "labelled", ((text, 1.0),)) for unit, text in ((0, truth[0]), (4, "red star"))
    )
    found = target.grade([right, wrong])
    assert found
    assert [(one.kind, one.right, one.total) for one in found.grades] == [(kind, 1, 2)]
    assert found.wrong == {f"{LAYER}/4": truth[4]}


def test_features_of_the_layer_of_the_latents_have_no_truth() -> None:
    registry = Registry.load()
    run = read_run("default", registry, options={"target.layers": [LAYER]})
    target = Builder(registry, Runtime("cpu", lambda name: HERE)).target(run.target)
    assert target
    assert target.grade([Label(Unit(LAYER, 4), "labelled", (("square", 1.0),))]) is None
