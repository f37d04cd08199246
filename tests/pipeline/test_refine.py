"""The method refine: what a label leaves out leads to further candidates, and better ones take a label's place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import toys

from dnd import api
from dnd.errors import UsageError
from dnd.pipeline.execute import execute
from dnd.pipeline.known import Known
from dnd.pipeline.refine import Tried, _side_by_side, _words_of_further
from dnd.plugin.registry import Entry, Registry
from dnd.results.unit import UnitResult

WEAK = {"min_auc": 0.55}
"""Two thirds of the photos activate the unit of two colours: images of one do so little more than they."""
ASKED: list[api.SummaryRequest] = []
LOADED: list[str] = []


class Either(torch.nn.Module):
    """`units`: one that is active where an image is red or blue, and green."""

    def __init__(self) -> None:
        super().__init__()
        self.units = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red, green, blue = x.mean((2, 3)).T
        return self.units(torch.stack([torch.maximum(red, blue), green], 1))


class Summarizer(toys.Summarizer):
    """The commonest colour of the captions, alone."""

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        ASKED.extend(requests)
        return [answer[:1] for answer in super().summarize(requests)]


class Scorer(toys.Scorer):
    def load(self) -> None:
        LOADED.append(self.name)
        super().load()

    def seen(self, evidence: Sequence[api.Evidence]) -> list[npt.NDArray[np.bool_]]:
        colours = [[toys.colour_of(picture.open()) for picture in one.exemplars] for one in evidence]
        return [
            np.array([[concept == colour for colour in own] for concept in one.concepts])
            for one, own in zip(evidence, colours, strict=True)
        ]


@pytest.fixture
def registry() -> Registry:
    ASKED.clear()
    LOADED.clear()
    toys.MOOD.__init__()  # type: ignore[misc]
    kinds = {
        "captioner": toys.Captioner,
        "summarizer": Summarizer,
        "generator": toys.Generator,
        "scorer": Scorer,
    }
    return Registry(Entry(kind, cls.name, cls, "toys", "1", "ok") for kind, cls in kinds.items())


def test_a_unit_of_two_meanings_gets_both(tmp_path: Path, registry: Registry) -> None:
    photos = toys.make_photos(tmp_path / "photos", 30)
    run = toys.toy_run(photos, registry, method={"name": "refine"}, exemplars={"k": 8, "sample": 30}, labels=WEAK)
    result = execute(run, tmp_path / "run", registry=registry, live=(Either(), toys.preprocess))
    both, green = result.records()
    assert (set(both.meanings), green.meanings) == ({"red", "blue"}, ("green",))
    assert [one.concept for one in both.labels] == list(both.meanings)
    assert both.history[0] in (("red",), ("blue",))
    assert len(LOADED) == 1 + max(len(both.history), len(green.history)), "once for each time candidates are tested"
    first, *further = [request for request in ASKED if "green" not in request.captions[0]]
    assert {one.split()[1] for one in first.captions} == {"red", "blue"}
    assert [(set(one.captions), [one.concept for one in one.tested]) for one in further] == [
        ({f"a {both.meanings[1]} thing"}, [both.meanings[0]])
    ], "once: then nothing is left out"
    assert further[0].tested[0].seen == pytest.approx(sum(both.meanings[0] in c for c in first.captions) / 8)
    table = (result.folder / "labels.csv").read_text().splitlines()
    assert table[0].endswith(",reason,meaning")
    assert [row.rpartition(",")[2] for row in table[1:]] == [" | ".join(both.meanings), "green"]
    line = json.loads((result.folder / "labels.jsonl").read_text().splitlines()[0])
    assert line["history"] == [[both.meanings[0]]]


def test_some_units_may_be_refined_alone(tmp_path: Path, registry: Registry) -> None:
    photos, live = toys.make_photos(tmp_path / "photos", 30), (Either(), toys.preprocess)
    settings = {"exemplars": {"k": 8, "sample": 30}, "labels": WEAK}

    def label(out: str, **method: Any) -> list[UnitResult]:
        run = toys.toy_run(photos, registry, method=method, **settings)
        return list(execute(run, tmp_path / out, registry=registry, live=live).records())

    plain, refined = label("plain"), label("all", name="refine")
    first, second = label("first", name="refine", units="0")
    assert (first.meanings, first.labels) == (refined[0].meanings, refined[0].labels)
    assert (second.meanings, second.labels) == ((), plain[1].labels)
    assert [one.labels for one in label("second", name="refine", units="1-5")] == [plain[0].labels, refined[1].labels]
    assert [one.labels for one in label("many", name="refine", units="0-999999999")] == [one.labels for one in refined]
    for units in ("shown", "1-", "two"):
        with pytest.raises(UsageError, match=r"method\.units: .*is not a choice of units"):
            label("wrong", name="refine", units=units)


class Sure(Scorer):
    """No image of any but the first can change anything."""

    name = "sure"

    def bound(self, evidence: Sequence[api.Evidence]) -> list[list[api.Bound]]:
        missing = [np.isnan(one.activations).any(axis=1) for one in evidence]
        return [[api.Bound(1 - at / 8, not at and bool(more)) for at, more in enumerate(own)] for own in missing]


def test_what_it_compares_gets_images_that_early_stopping_left_out(tmp_path: Path, registry: Registry) -> None:
    sure = Registry([*registry.entries, Entry("scorer", "sure", Sure, "toys", "1", "ok")])
    run = toys.toy_run(
        toys.make_photos(tmp_path / "photos", 30), sure, method={"name": "refine"},
        exemplars={"k": 8, "sample": 30}, labels={"min_auc": 0.5}, scorer={"backend": "sure"}, images={"n": 6},
    )  # fmt: skip
    result = execute(run, tmp_path / "run", registry=sure, live=(Either(), toys.preprocess))
    both, _ = result.records()
    assert set(both.meanings) == {"red", "blue"}
    assert {one.concept: len(one.images) for one in both.candidates} == {"red": 6, "blue": 6}


def test_the_plain_method_has_the_tables_it_had(tmp_path: Path, registry: Registry) -> None:
    run = toys.toy_run(toys.make_photos(tmp_path / "photos", 30), registry)
    result = execute(run, tmp_path / "run", registry=registry, live=(Either(), toys.preprocess))
    assert (result.folder / "labels.csv").read_text().splitlines()[0].endswith(",reason")
    assert "meanings" not in json.loads((result.folder / "labels.jsonl").read_text().splitlines()[0])


def test_a_further_question_without_an_answer_costs_no_label(tmp_path: Path, registry: Registry) -> None:
    class Silent(Summarizer):
        def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
            if any(request.tested for request in requests):
                raise api.ItemError("no answer")
            return super().summarize(requests)

    entries = [one for one in registry.entries if one.kind != "summarizer"]
    silent = Registry([*entries, Entry("summarizer", "toy", Silent, "toys", "1", "ok")])
    run = toys.toy_run(toys.make_photos(tmp_path / "photos", 30), silent, method={"name": "refine"}, labels=WEAK)
    result = execute(run, tmp_path / "run", registry=silent, live=(Either(), toys.preprocess))
    assert [record.status for record in result.records()] == ["labelled", "labelled"]


def test_a_scorer_that_sees_nothing_is_refused(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 3)
    with pytest.raises(UsageError, match="refine needs a scorer that sees candidates in exemplars"):
        toys.toy_run(photos, method={"name": "refine"})
    with pytest.raises(UsageError, match=r"method\.round: there is no such setting"):
        toys.toy_run(photos, method={"name": "refine", "round": 3})


def tried(least: float = 1.0, **candidates: tuple[float, float, str]) -> Tried:
    """By candidate, best first: its AUC, its strength, and an x for each exemplar on which it is seen. Weaker images
    have the share `least` of it."""
    names = {key.replace("_", " "): one for key, one in candidates.items()}
    return Tried(
        tuple(names),
        {name: auc for name, (auc, _, _) in names.items()},
        {name: strength for name, (_, strength, _) in names.items()},
        {name: least * strength for name, (_, strength, _) in names.items()},
        {name: np.array([mark == "x" for mark in marks]) for name, (_, _, marks) in names.items()},
    )


def test_meanings_share_no_word_activate_the_unit_and_are_seen_apart() -> None:
    assert tried(heart=(0.9, 1, "xxx.."), red=(0.9, 1, "...xx")).meanings() == ("heart", "red")
    assert tried(heart=(0.9, 1, "xxx.."), red=(0.6, 1, "...xx")).meanings() == ("heart",)
    assert tried(heart=(0.9, 1, "xxxx."), red=(0.9, 1, "...xx")).meanings() == ("heart",), "of one exemplar alone"
    assert tried(heart=(0.9, 1, "xxx.."), red_heart=(0.9, 1, "...xx")).meanings() == ("heart",)
    several = tried(heart=(0.9, 1, "xxx..."), red_dots=(0.8, 1, "...xx."), red=(0.8, 1, "...xxx"))
    assert several.meanings() == ("heart", "red")


def test_a_part_that_does_as_much_is_better() -> None:
    assert tried(red_star=(0.9, 1.0, "xx"), red=(0.9, 0.9, "xx")).worse() == {"red star": "red"}
    assert tried(red_star=(0.9, 1.0, "xx"), red=(0.9, 0.4, "xx")).worse() == {}
    assert tried(0.1, red_star=(0.9, 1.0, "xx"), red=(0.9, 1.0, "xx")).worse() == {}, "many of red do nothing"
    assert tried(red_star=(0.9, 1.0, "xx"), red=(0.8, 0.9, "xx")).worse() == {}
    assert tried(red_star=(0.9, 1.0, "xx"), blue=(0.9, 0.9, "xx")).worse() == {}


def test_a_further_meaning_gives_way_to_its_part_too() -> None:
    two = tried(grid=(0.9, 1.0, "xxx.."), red_star=(0.9, 1.0, "...xx"), star=(0.9, 0.9, "...x."))
    assert two.meanings() == ("grid", "red star")
    assert two.worse() == {"red star": "star"}


def test_candidates_that_captions_tell_side_by_side_are_one() -> None:
    nothing: Any = None
    unit = api.Unit("units", 0)

    def told(concepts: tuple[str, ...], *captions: str) -> list[str]:
        return _side_by_side(Known(nothing, nothing, (), {unit: captions}, {unit: concepts}), unit)

    star = ("A red star.", "one red star, and blue", "a blue star")
    assert told(("star", "blue", "red"), *star) == ["red star"]
    assert told(("star", "blue", "red"), *star, "nothing", "nothing") == [], "of fewer than half"
    assert told(("star", "re"), "a re-star", "a restar") == ["re star"], "words, not letters"
    assert told(("a b c", "d e f"), "a b c d e f") == [], "too long for a name"
    assert told(("star", "red")) == []


def test_the_words_of_further_meanings_are_tested() -> None:
    two = tried(red_grid=(0.9, 1.0, "xxx.."), white_star=(0.9, 1.0, "...xx"))
    assert two.meanings() == ("red grid", "white star")
    assert _words_of_further(two) == ["star", "white"]
    assert _words_of_further(tried(grid=(0.9, 1.0, "xxx.."), of_a_star=(0.9, 1.0, "...xx"))) == ["star"]


def test_a_narrower_name_is_better_where_most_images_of_the_label_do_hardly_anything() -> None:
    assert tried(red=(0.9, 0.1, "xx"), red_star=(0.9, 1.0, "xx")).worse() == {"red": "red star"}
    assert tried(red=(0.9, 0.8, "xx"), red_star=(0.9, 1.0, "xx")).worse() == {}, "it is only drawn better"
    assert tried(red=(0.9, 0.1, "xx"), red_star=(0.9, 1.0, "x.")).worse() == {}, "seen on half of the exemplars"
    assert tried(red=(0.9, 0.1, "xx"), star=(0.9, 1.0, "xx")).worse() == {}
