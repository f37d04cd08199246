"""The microworld: its pictures, its planted target, and the rule that grades labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dnd_microworld
from dnd import api
from dnd.api import Label, Runtime, Unit, model_names
from dnd_microworld import grade, world

HERE = Path(dnd_microworld.__file__).parent
RUNTIME = Runtime("cpu", lambda name: HERE / "weights" / name)
TRUTH = api.read_truth(HERE / "truth.csv")


# --- pictures ----------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(world.SPLITS)), st.integers(0, 10_000))
@settings(max_examples=25)
def test_a_scene_does_not_depend_on_the_batch(split, index):
    alone = world.render(world.draw_scenes(split, index, 1))
    among = world.render(world.draw_scenes(split, index - 1 if index else 0, 3))
    place = 1 if index else 0
    assert (among.images[place] == alone.images[0]).all()
    assert (among.owners[place] == alone.owners[0]).all()


def test_training_scenes_never_show_a_held_out_pair_and_others_do():
    held = {f"{c} {x}" for c, x in world.HELD_OUT_OBJECTS | world.HELD_OUT_BACKGROUNDS}
    training = set().union(*(world.concepts(s) for s in world.draw_scenes("train", 0, 2000)))
    probing = set().union(*(world.concepts(s) for s in world.draw_scenes("probing", 0, 2000)))
    assert not held & training
    assert held <= probing


def test_masks_are_where_the_caption_says():
    scenes = world.draw_scenes("test", 0, 50)
    drawn = world.render(scenes)
    for scene, owners in zip(scenes, drawn.owners, strict=True):
        for place, thing in enumerate(scene.things, start=1):
            mask = world.concept_mask(scene, owners, f"{thing.colour} {thing.shape}")
            assert (mask & (owners == place)).sum() == (owners == place).sum() > 100
            assert f"{thing.colour} {thing.shape}" in (world.caption(scene) or "")


# --- probing set -------------------------------------------------------------------------------------


def probing(**settings_: int) -> dnd_microworld.MicroworldProbing:
    return dnd_microworld.MicroworldProbing(dnd_microworld.ProbingConfig(**settings_), RUNTIME)


def test_the_probing_set_repeats_itself_and_another_seed_does_not():
    first, again, other = probing(count=5), probing(count=5), probing(count=5, seed=1)
    assert len(first) == 5
    assert first.digest() == again.digest()
    assert len({first.digest(), other.digest(), probing(count=6).digest()}) == 3
    assert len({s.image_name(i) for s in (first, other) for i in range(5)}) == 10
    assert np.array_equal(np.asarray(first.open(3)), np.asarray(again.open(3)))
    assert not np.array_equal(np.asarray(first.open(3)), np.asarray(other.open(3)))
    assert first.open(0).mode == "RGB"
    assert first.open(0).size == (64, 64)


# --- target ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def responses():
    """Scenes of the test split, the planted net's maps on them, and its module names."""
    import torch

    net, preprocess = dnd_microworld.MicroworldTarget(dnd_microworld.TargetConfig(), RUNTIME).build()
    scenes = world.draw_scenes("test", 20_000, 600)
    drawn = world.render(scenes)
    from PIL import Image

    maps: list[torch.Tensor] = []
    net.get_submodule("concepts").register_forward_hook(lambda m, i, out: maps.append(out.detach()))
    with torch.inference_mode():
        for at in range(0, len(scenes), 100):
            net(torch.stack([preprocess(Image.fromarray(i)) for i in drawn.images[at : at + 100]]))
    return scenes, drawn, torch.cat(maps).numpy()


def test_a_planted_seed_brings_its_own_senses_unless_a_model_is_named():
    def model(**settings):
        return model_names(dnd_microworld.TargetConfig(**settings))

    assert model() == model(planted_seed=6) == ["microworld-target"]
    assert model(planted_seed=7) == model(planted_seed=dnd_microworld.LAST_SEED) == ["microworld-target-sharp"]
    assert model(planted_seed=7, model="mine") == ["mine"]
    with pytest.raises(ValueError, match="planted_seed"):
        dnd_microworld.TargetConfig(planted_seed=dnd_microworld.LAST_SEED + 1)


def test_figures_are_those_of_the_targets_own_model():
    names = {"microworld-target", "microworld-target-sharp"}
    for name in names:
        assert names & set(grade.read_figures(HERE / "figures.json", name)) == {name}


def test_truth_names_every_unit_once(responses):
    _, _, maps = responses
    assert sorted(u.index for u in TRUTH) == list(range(maps.shape[1]))
    kinds = [t.kind for t in TRUTH.values()]
    assert {k: kinds.count(k) for k in grade.KINDS} == {"single": 21, "conjunction": 24, "union": 14, "noise": 12}
    pairs = {f"{c} {x}" for c, x in world.HELD_OUT_OBJECTS | world.HELD_OUT_BACKGROUNDS}
    assert len(pairs & {c for t in TRUTH.values() for c in t.concepts}) >= 6


def test_planted_units_respond_to_their_concepts_and_noise_to_none(responses):
    scenes, _, maps = responses
    assert (maps >= 0).all()
    pooled = maps.mean((2, 3))
    shown = [world.concepts(s) for s in scenes]
    for unit, truth in TRUTH.items():
        values = pooled[:, unit.index]
        assert values.std() > 0
        if truth.kind == "noise":
            for concept in (*world.COLOURS, *world.TEXTURES[1:], *world.SHAPES):
                has = np.array([concept in c for c in shown])
                assert abs(auc(values, has) - 0.5) < 0.15, (unit, concept)
        else:
            has = np.array([any(part in c for part in truth.concepts) for c in shown])
            assert auc(values, has) > 0.9, (unit, truth.concepts)


def test_maps_are_high_where_the_concept_is(responses):
    scenes, drawn, maps = responses
    for unit, truth in TRUTH.items():
        if truth.kind not in ("single", "conjunction"):
            continue
        shares = []
        for scene, owners, found in zip(scenes, drawn.owners, maps[:, unit.index], strict=True):
            if truth.concepts[0] in world.concepts(scene):
                cells = world.concept_mask(scene, owners, truth.concepts[0]).reshape(16, 4, 16, 4).mean((1, 3))
                shares.append((found * (cells > 0.1)).sum() / max(found.sum(), 1e-6))
        assert np.mean(shares) > 0.8, (unit, truth.concepts)


def auc(scores, positive):
    order = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    n = positive.sum()
    return (order[positive].sum() - n * (n - 1) / 2) / (n * (len(scores) - n))


# --- grading -----------------------------------------------------------------------------------------

U = Unit("concepts", 0)


@pytest.mark.parametrize(
    ("label", "attributes"),
    [
        ("A red star.", {"red", "star"}),
        ("star shape", {"star"}),
        ("red background", {"red"}),
        ("a blue background with polka dots", {"blue", "dots"}),
        ("Horizontally striped", {"horizontal stripes"}),
        ("striped horizontally in yellow", {"yellow", "horizontal stripes"}),
        ("vertical lines", {"vertical stripes"}),
        ("chequered pattern", {"checkerboard"}),
        ("orange checkerboard", {"orange", "checkerboard"}),
        ("green love hearts", {"green", "heart"}),
        ("plus sign", {"cross"}),
        ("stripes", {"stripes"}),
        ("plain red background", {"plain", "red"}),
        ("red things", {"red"}),
        ("start", {"start"}),
    ],
)
def test_what_a_label_names(label, attributes):
    assert grade.attributes(label) == attributes


def said(*labels: str, status: str = "labelled") -> Label:
    return Label(U, status, tuple((label, 1.0) for label in labels))


@pytest.mark.parametrize(
    ("label", "truth", "right"),
    [
        (said("red star"), ("conjunction", "red star"), True),
        (said("star in red"), ("conjunction", "red star"), True),
        (said("star", "red star"), ("conjunction", "red star"), False),
        (said("red star"), ("single", "star"), False),
        (said("red or star"), ("single", "star"), False),
        (said("cyan dots"), ("single", "dots"), False),
        (said("dots", "heart", "green"), ("union", "green", "dots"), True),
        (said("dots", "heart", "star", "green"), ("union", "green", "dots"), False),
        (said("green dots"), ("union", "green", "dots"), False),
        (said("green"), ("union", "green", "dots"), False),
        (said(status="uninterpretable"), ("noise",), True),
        (said("red"), ("noise",), False),
        (said("red", status="uninterpretable"), ("single", "red"), False),
        (said(status="failed"), ("single", "red"), False),
        (said(status="failed"), ("noise",), False),
    ],
)
def test_the_rule(label, truth, right):
    assert grade.is_right(label, api.Truth(tuple((text,) for text in truth[1:]), truth[0])) is right


def perfect() -> list[Label]:
    return [
        Label(unit, "uninterpretable" if t.kind == "noise" else "labelled", tuple((c, 1.0) for c in t.concepts))
        for unit, t in TRUTH.items()
    ]


def test_the_truth_itself_is_all_right_and_its_controls_are_low():
    grading = grade.grade(perfect(), TRUTH, {})
    assert grading is not None
    assert all(g.right == g.total for g in grading.grades)
    assert sum(g.total for g in grading.grades) == len(TRUTH)
    assert grading.wrong == {}
    assert grading.controls["meaningful units called uninterpretable"] == 0
    assert grading.controls["labels shuffled between units"] < 0.1
    # Silence is the best constant: it is right for every noise unit.
    assert grading.controls["one constant label, the best"] == pytest.approx(12 / len(TRUTH))


def test_wrong_units_are_named_with_what_they_are():
    labels = perfect()
    star = next(u for u, t in TRUTH.items() if t.concepts == ("star",))
    labels[star.index] = Label(star, "uninterpretable")
    grading = grade.grade(labels, TRUTH, {})
    assert grading is not None
    assert grading.wrong == {str(star): "star"}
    assert grading.controls["meaningful units called uninterpretable"] == pytest.approx(1 / 59)


def test_units_of_other_layers_are_not_graded():
    assert grade.grade([Label(Unit("trunk.fine", 0), "labelled", (("red", 1.0),))], TRUTH, {}) is None


def test_registering_imports_nothing_heavy():
    heavy = "any(m in sys.modules for m in ('torch', 'transformers', 'PIL.Image'))"
    code = f"import sys, dnd_microworld as m; m.register_targets(); m.register_probing_sets(); sys.exit({heavy})"
    subprocess.run([sys.executable, "-c", code], check=True)
