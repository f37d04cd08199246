"""Runs of one store: whatever else is in it, a run finds what it finds alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import toys
from rich.console import Console

from dnd import api
from dnd.pipeline import activations, controls
from dnd.pipeline.build import Builder
from dnd.pipeline.execute import execute
from dnd.pipeline.job import Job
from dnd.pipeline.scores import _key as score_key
from dnd.plugin.registry import Entry, Registry
from dnd.results.run import RunFolder
from dnd.runtime.progress import Meter
from dnd.store.images import Store


class Everything(toys.Scorer):
    """Its scores hang on all that a scorer is told."""

    name = "everything"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        found = []
        for one in evidence:
            pictures = [one.exemplars, one.sample, *one.images]
            told = [[[p.digest for p in row] for row in pictures], one.concepts]
            numbers = [one.activations, one.sample_activations, one.exemplar_activations]
            text = repr([told, [np.round(values, 3).tolist() for values in numbers]])
            found.append([hashlib.sha256(f"{text} {i}".encode()).digest()[0] / 255 for i in range(len(one.concepts))])
        return found


class Modelled(toys.Captioner):
    """Has a model, settings that answers do and do not depend on, and one that it chooses by itself."""

    name = "modelled"
    chooses = "float32"

    class Config(api.Config):
        unkeyed: ClassVar[frozenset[str]] = frozenset({"threads"})
        model: api.ModelName = "some-model"
        batch_size: int = 4
        threads: int = 1
        suffix: str = ""

    def chosen(self) -> dict[str, Any]:
        return {"dtype": self.chooses}


def registry() -> Registry:
    return Registry([*toys.registry().entries, Entry("scorer", "everything", Everything, "toys", "1", "ok")])


def network(turn: int = 0) -> torch.nn.Sequential:
    """Two layers with maps whose edges differ from their middles; `turn` exchanges the last one's units."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Conv2d(5, 4, 3, padding=1))
    with torch.no_grad():
        net[1].weight.copy_(net[1].weight.roll(turn, 0))
    return net.eval()


def label(photos: Path, out: Path, tables: dict[str, Any], turn: int = 0) -> RunFolder:
    layers = {"target": {"name": "Net", "layers": ["1"], "units": "all"}}
    shown = {"labels": {"min_auc": 0.0}, "scorer": {"backend": "everything"}}
    run = toys.toy_run(photos, registry(), **{**layers, **shown, **tables})
    return execute(run, out, registry=registry(), live=(network(turn), toys.preprocess))


BOTH = {"name": "Net", "layers": ["0", "1"], "units": "all"}
TURNED = {"name": "Net", "layers": ["1", "0"], "units": "all"}
LARGEST = {"k": 4, "sample": 12, "pooling": "max"}
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "as it is": ({}, 0),
    "other weights": ({}, 1),
    "more layers": ({"target": BOTH}, 0),
    "layers in another order": ({"target": TURNED}, 0),
    "another pooling": ({"exemplars": LARGEST}, 0),
    "fewer exemplars": ({"exemplars": {"k": 3, "sample": 12}}, 0),
    "a smaller sample": ({"exemplars": {"k": 4, "sample": 6}}, 0),
    "fewer images": ({"images": {"n": 3}}, 0),
    "fewer candidates": ({"concepts": {"n": 2}}, 0),
    "another seed": ({"seed": 1}, 0),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    toys.MOOD.__init__()  # type: ignore[misc]
    return toys.make_photos(tmp_path_factory.mktemp("shared") / "photos")


@pytest.fixture(scope="module")
def shared(photos: Path) -> dict[str, RunFolder]:
    """Every variant, one after the other over the same store."""
    return {name: label(photos, photos.parent / name, *variant) for name, variant in VARIANTS.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_in_the_store_is_taken_by_its_own_alone(
    photos: Path, shared: dict[str, RunFolder], name: str, tmp_path: Path
) -> None:
    label(photos, tmp_path / "run", *VARIANTS[name])
    for file in ("labels.csv", "labels.jsonl"):
        assert (shared[name].folder / file).read_bytes() == (tmp_path / "run" / file).read_bytes()


def test_another_probing_set_has_exemplars_of_its_own(photos: Path, tmp_path: Path) -> None:
    others = toys.make_photos(tmp_path / "photos")
    for number in range(24):
        toys.flat(list(toys.COLOURS)[number % 3], 100 + number).save(others / f"{number:03}.png")
    for name, folder in (("first", photos), ("second", others), ("alone/second", others)):
        label(folder, tmp_path / name, {})
    assert (tmp_path / "second" / "labels.jsonl").read_bytes() == (
        tmp_path / "alone" / "second" / "labels.jsonl"
    ).read_bytes()


def test_each_part_of_the_evidence_makes_another_score() -> None:
    def picture(name: str) -> api.Picture:
        return api.Picture(name, lambda: toys.flat("red", 0))

    one = api.Evidence(
        unit=api.Unit("a", 0),
        exemplars=(picture("e"),),
        exemplar_activations=np.ones(1, np.float32),
        concepts=("red", "blue"),
        images=((picture("r"),), (picture("b"),)),
        activations=np.ones((2, 1), np.float32),
        sample=(picture("s"),),
        sample_activations=np.ones(1, np.float32),
    )
    others: list[dict[str, Any]] = [
        {"exemplars": (picture("x"),)},
        {"exemplar_activations": np.zeros(1, np.float32)},
        {"concepts": ("blue", "red")},
        {"images": ((picture("b"),), (picture("r"),))},
        {"activations": np.array([[1], [2]], np.float32)},
        {"sample": (picture("x"),)},
        {"sample_activations": np.zeros(1, np.float32)},
    ]
    assert len({score_key(one), *(score_key(replace(one, **other)) for other in others)}) == 8


def test_variants_differ(shared: dict[str, RunFolder]) -> None:
    assert len({(result.folder / "labels.jsonl").read_bytes() for result in shared.values()}) == len(VARIANTS)


def test_activations_on_synthetic_images_are_those_of_the_unit(shared: dict[str, RunFolder]) -> None:
    seen = 0
    for unit in shared["more layers"]:
        net = network()[: 1 + int(unit.layer)]
        for candidate in unit.candidates if unit.status != "failed" else ():
            with torch.no_grad():
                images = [toys.preprocess(unit.image(one))[None] for one in candidate.images]
                outputs = [float(net(image)[0, unit.index].mean()) for image in images]
            assert outputs
            assert [one.activation for one in candidate.images] == pytest.approx(outputs, rel=1e-3, abs=1e-4)
            seen += 1
    assert seen > 9


def test_of_very_many_units_those_with_the_concept_are_kept_and_the_labels_are_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {**BOTH, "units": "0-1"}
    monkeypatch.setattr(controls, "LEAST", 1)
    monkeypatch.setattr(controls, "_words", lambda concept: set())  # every label is a control
    narrow = label(photos, tmp_path / "narrow" / "run", {"target": some})
    monkeypatch.setattr(activations, "WIDE", 9)
    wide = label(photos, tmp_path / "wide" / "run", {"target": some})
    assert (wide.folder / "labels.jsonl").read_bytes() == (narrow.folder / "labels.jsonl").read_bytes()
    units = [unit for unit in narrow if unit.status != "failed"]
    assert any(one.control_auc is not None for unit in units for one in unit.candidates)
    holders: dict[str, set[str]] = {}
    for unit in units:
        for candidate in unit.candidates:
            for one in candidate.images:
                holders.setdefault(one.digest, set()).add(f"{unit.layer}/{unit.index}")
    sizes: dict[str, set[int]] = {}
    for run in (narrow, wide):
        key = run.facts["stages"]["activations"]["key"]
        for row in Store(run.folder.parent / ".dnd-store").table("activations", key, activations.ACTIVATIONS).rows():
            sizes.setdefault(row["key"], set()).add(len(row["values"]) // 4)
    assert {sizes[digest] == {9} for digest in holders} == {True}
    kept = {
        digest: {n for key, own in sizes.items() if key.startswith(f"{digest}:") for n in own} for digest in holders
    }
    assert all(len(units) in kept[digest] for digest, units in holders.items())
    assert min(map(len, holders.values())) < 9


# --- keys of backends --------------------------------------------------------------------------------


def key(
    photos: Path,
    backend: type[Modelled] = Modelled,
    version: str = "1",
    package: str = "toys",
    device: str = "cpu",
    digest: str = "a",
    **settings: Any,
) -> str:
    known = Registry([*toys.registry().entries, Entry("captioner", "modelled", backend, package, version, "ok")])
    run = toys.toy_run(photos, known, captioner={"backend": "modelled", **settings})
    builder = Builder(known, api.Runtime(device, Path))
    job = Job(run, builder, Store(photos.parent / "keys"), Meter(Console(quiet=True)), lambda name: digest)
    found: str = job.backend("captioner")[1]
    return found


def test_a_backends_answers_are_known_by_all_that_they_depend_on(photos: Path) -> None:
    class Halved(Modelled):
        chooses = "float16"

    same = [key(photos), key(photos, threads=8), key(photos, device="cpu:1")]
    others = [
        key(photos, Halved),
        key(photos, version="2"),
        key(photos, package="others"),
        key(photos, device="cuda"),
        key(photos, digest="b"),
        key(photos, suffix="!"),
    ]
    assert len(set(same)) == 1
    assert len({same[0], *others}) == 7
