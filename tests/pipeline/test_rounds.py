"""Images in rounds: fewer of them, the same ones, and the same labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from PIL import Image

from dnd import api
from dnd.errors import StoppedError
from dnd.pipeline.execute import execute
from dnd.pipeline.rounds import steps
from dnd.plugin.registry import Entry
from dnd.results.run import RunFolder

PALETTE = {
    "coal": (9, 9, 9),
    "leaf": (0, 200, 0),
    **toys.COLOURS,
    "wine": (200, 0, 0),
    "sea": (0, 0, 200),
    "rust": (180, 0, 0),
}
MADE: list[tuple[str, int]] = []
"""Concept and seed of every image that a generator made."""


class Summarizer(toys.Summarizer):
    """Every unit has the whole palette as its candidates."""

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        return [list(PALETTE) for _ in requests]


class Generator(toys.Generator):
    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image.Image]:
        MADE.extend((one.concept, one.seed) for one in requests)
        return [self.one(one) for one in requests]

    def one(self, request: api.ImageRequest) -> Image.Image:
        if request.concept in toys.MOOD.fail_on:
            raise RuntimeError(f"cannot do {request.concept}")
        chance = np.random.default_rng(request.seed)
        shade = np.clip(PALETTE[request.concept] + chance.integers(-60, 61, 3), 0, 255)
        image = Image.new("RGB", (12, 12), tuple(int(x) for x in shade))
        image.putpixel((0, 0), tuple(int(x) for x in chance.integers(0, 256, 3)))  # no two are the same
        return image


class Bounded(toys.Scorer):
    """The mean activation, which is 1 at most."""

    rounds = (0.25, 0.5)  # type: ignore[assignment]
    loads = 0

    def load(self) -> None:
        type(self).loads += 1

    def bound(self, evidence: Sequence[api.Evidence]) -> list[list[api.Bound]]:
        return [
            [api.Bound(float(np.nan_to_num(row, nan=1.0).mean()), bool(np.isnan(row).any())) for row in one.activations]
            for one in evidence
        ]


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    toys.MOOD.__init__()  # type: ignore[misc]
    MADE.clear()
    Bounded.loads = 0
    yield
    toys.MOOD.__init__()  # type: ignore[misc]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return toys.make_photos(tmp_path / "photos")


def label(
    photos: Path, out: Path, stopping: str, scorer: type[api.Scorer] = Bounded, units: str = "0", **options: Any
) -> RunFolder:
    kinds = {"captioner": toys.Captioner, "summarizer": Summarizer, "generator": Generator, "scorer": scorer}
    known = type(toys.registry())(Entry(kind, "toy", cls, "toys", "1", "ok") for kind, cls in kinds.items())
    tables = {
        "target": {"name": "Net", "layers": ["units"], "units": units},  # 0 is red
        "concepts": {"n": len(PALETTE)},
        "images": {"n": 8, "early_stopping": stopping},
    }
    run = toys.toy_run(photos, known, **tables)
    return execute(run, out, registry=known, live=(toys.Net(), toys.preprocess), **options)


def table(folder: Path) -> str:
    return (folder / "labels.csv").read_text()


def candidates(folder: Path) -> dict[str, dict[str, Any]]:
    line = json.loads((folder / "labels.jsonl").read_text())
    return {one["concept"]: one for one in line["candidates"]}


def test_exact_gives_the_labels_of_all_images_with_fewer(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a" / "exact", "exact")
    exact = list(MADE)
    MADE.clear()
    label(photos, tmp_path / "b" / "off", "off")
    assert table(tmp_path / "a" / "exact") == table(tmp_path / "b" / "off")
    assert table(tmp_path / "b" / "off").splitlines()[1].split(",")[3:9:2] == ["red", "wine", "rust"]
    made = Counter(concept for concept, _ in exact)
    assert made == {**dict.fromkeys(PALETTE, 4), "red": 8, "wine": 8, "rust": 8}
    assert len(set(exact)) == len(exact)
    assert set(exact) < set(MADE)
    assert len(MADE) == 8 * len(PALETTE)


def test_the_record_tells_scores_from_bounds(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "exact", "exact")
    label(photos, tmp_path / "off", "off")
    found, whole = candidates(tmp_path / "exact"), candidates(tmp_path / "off")
    for concept in ("red", "wine", "rust"):
        assert found[concept] == whole[concept]
    third = whole["rust"]["score"]
    for concept in ("coal", "leaf", "green", "blue", "sea"):
        one = found[concept]
        assert "score" not in one
        assert whole[concept]["score"] < one["bound"] < third
        assert one["images"] == whole[concept]["images"][:4]


def test_a_concept_that_cannot_be_made_makes_room_for_the_next(photos: Path, tmp_path: Path) -> None:
    toys.MOOD.fail_on = {"wine"}
    label(photos, tmp_path / "a" / "exact", "exact")
    label(photos, tmp_path / "b" / "off", "off")
    assert table(tmp_path / "a" / "exact") == table(tmp_path / "b" / "off")
    line = json.loads((tmp_path / "a" / "exact" / "labels.jsonl").read_text())
    assert [one["concept"] for one in line["dropped"]] == ["wine"]


def test_economy_keeps_the_first_label_with_fewer_images_still(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a", "economy")
    made = Counter(concept for concept, _ in MADE)
    MADE.clear()
    label(photos, tmp_path / "b" / "off", "off")
    few, all_ = (table(folder).splitlines()[1].split(",") for folder in (tmp_path / "a", tmp_path / "b" / "off"))
    assert few[:5] == all_[:5]
    assert few[5:9:2] == ["wine", "rust"]
    assert made["red"] == 8
    assert made.total() < 4 * 5 + 8 * 3


def test_economy_without_bounds_halves_the_candidates(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a", "economy", toys.Scorer)
    made = Counter(concept for concept, _ in MADE)  # after 2, 4 and 5 of 8 images
    assert sorted(made.values()) == [2, 2, 2, 2, 4, 4, 5, 8]
    assert made["red"] == 8
    assert table(tmp_path / "a").splitlines()[1].split(",")[3] == "red"
    assert set(candidates(tmp_path / "a")) == set(PALETTE)


def test_a_scorer_without_bounds_gets_all_images(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a", "exact", toys.Scorer)
    assert len(MADE) == 8 * len(PALETTE)


@pytest.mark.parametrize("after", [3, 20, 40])
def test_a_run_that_was_stopped_in_a_round_goes_on_from_there(photos: Path, tmp_path: Path, after: int) -> None:
    label(photos, tmp_path / "whole" / "a", "exact")
    whole = sorted(MADE)
    MADE.clear()
    with pytest.raises(StoppedError):
        label(photos, tmp_path / "b", "exact", stopped=lambda: len(MADE) >= after)
    assert after <= len(MADE) < len(whole)
    label(photos, tmp_path / "b", "exact")
    assert sorted(MADE) == whole
    assert table(tmp_path / "b") == table(tmp_path / "whole" / "a")


def test_the_scorer_is_loaded_once_and_not_at_all_when_all_is_stored(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a", "exact")
    assert Bounded.loads == 1
    label(photos, tmp_path / "b", "exact")
    assert Bounded.loads == 1
    found = json.loads((tmp_path / "b" / "run.json").read_text())["stages"]
    assert {name: stage["computed"] for name, stage in found.items()} == dict.fromkeys(found, 0)
    assert found["images"]["items"] == len(MADE)


def test_a_fresh_run_makes_each_image_once(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a", "exact")
    before = len(MADE)
    label(photos, tmp_path / "a", "exact", fresh=True)
    assert len(MADE) == 2 * before


def test_steps_end_with_all_images() -> None:
    scorer = Bounded(toys.BatchConfig(), api.Runtime("cpu", Path))
    assert steps(scorer, 8) == [2, 4, 8]
    assert steps(scorer, 1) == [1]
    assert steps(toys.Scorer(toys.BatchConfig(), api.Runtime("cpu", Path)), 10) == [2, 4, 6, 10]


def test_other_units_do_not_change_a_units_record(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a" / "alone", "exact")
    MADE.clear()
    label(photos, tmp_path / "b" / "all", "exact", units="0-2")
    alone, first = (
        (folder / "labels.jsonl").read_text().splitlines()[0]
        for folder in (tmp_path / "a" / "alone", tmp_path / "b" / "all")
    )
    assert alone == first
    assert Counter(concept for concept, _ in MADE)["green"] == 8  # more than the first unit needed
