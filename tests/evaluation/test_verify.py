"""Verdicts on labels: the rules, and the whole way over the toy world."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toys
from finished import finish

from dnd.evaluation.evidence import Evidence, relation
from dnd.evaluation.verify import _explained, _verdict, judge, names_of
from dnd.results.report import rows
from dnd.results.run import RunFolder
from dnd.results.unit import Candidate, Exemplar, ScoredConcept, UnitResult
from dnd.results.verdict import Neighbour, Relation, Verdict


def beside(kind: Relation, auc: float, strength: float, concept: str = "x", needed: float | None = None) -> Neighbour:
    """A name whose strength is a multiple of the label's."""
    return Neighbour(concept=concept, relation=kind, auc=auc, strength=strength, needed=needed)


@pytest.mark.parametrize(
    ("drive", "names", "verdict"),
    [
        (0.95, [], "verified"),
        (0.5, [], "not driven"),
        (0.95, [beside("broader", 0.97, 0.9)], "too narrow"),
        (0.95, [beside("broader", 0.97, 0.1)], "verified"),  # it activates the unit, but much less than the label
        (0.95, [beside("broader", 0.6, 0.9)], "verified"),
        (0.65, [beside("narrower", 0.95, 9)], "too broad"),
        (0.65, [beside("narrower", 0.95, 1.5)], "not driven"),  # it is drawn a little better
        (0.95, [beside("narrower", 0.97, 9)], "verified"),  # all images of the label activate it
        (0.6, [beside("narrower", 0.7, 9)], "not driven"),
        (0.95, [beside("other", 0.95, 1)], "one of several"),
        (0.95, [beside("same", 0.95, 1)], "verified"),
        (0.95, [beside("other", 0.95, 1.2, "star"), beside("broader", 0.95, 0.9, "red")], "too narrow"),
    ],
)
def test_the_verdict_follows_from_what_activates_the_unit(drive: float, names: list[Neighbour], verdict: str) -> None:
    assert judge(drive, 1, None, names)[0] == verdict
    assert judge(drive, 1, 0.95, names)[0] == verdict


@pytest.mark.parametrize(
    ("needed", "names", "verdict"),
    [
        (0.9, [], "verified"),
        (0.85, [], "one of several"),  # strong images do without it
        (0.6, [beside("broader", 0.95, 0.1, needed=0.95)], "too narrow"),  # which are red all the same
        (0.6, [beside("broader", 0.95, 0.1, needed=0.7)], "one of several"),
        (1.0, [beside("broader", 0.95, 0.1, needed=1.0)], "verified"),
        (1.0, [beside("narrower", 0.95, 9, needed=0.95)], "too broad"),  # nothing else of its kind is strong
        (1.0, [beside("narrower", 0.95, 9, needed=0.3)], "verified"),
    ],
)
def test_the_verdict_follows_from_what_strong_images_show(needed: float, names: list[Neighbour], verdict: str) -> None:
    assert judge(0.95, 1, needed, names)[0] == verdict


def test_the_name_that_decides_is_given() -> None:
    assert judge(0.9, 1, 1.0, [beside("other", 0.9, 0.9, "star"), beside("other", 0.9, 1.1, "ring")])[1] == "ring"


def record(label: str, candidates: dict[str, float]) -> UnitResult:
    return UnitResult(
        layer="units",
        index=0,
        status="labelled",
        labels=(ScoredConcept(concept=label, score=1.0),),
        candidates=tuple(Candidate(concept=concept, score=score) for concept, score in candidates.items()),
    )


def test_a_label_is_tested_beside_its_parts_and_the_best_other_candidates() -> None:
    others = {"red star": 1.0, "ring": 0.1, "heart": 0.5, "dots": 0.4, "grid": 0.3}
    assert names_of(record("red star", others)) == ["red star", "star", "red", "heart", "dots", "grid"]
    assert names_of(record("star", {"star": 1.0})) == ["star"]


def evidence(likeness: dict[str, list[float]]) -> Evidence:
    """Two images of a cat, two of an animal, two of others."""
    images = {"cat": ["a", "b"], "animal": ["c", "d"], "rest": ["e", "f"]}
    rows = {digest: row for row, digest in enumerate("abcdef")}
    given = {name: np.array(values, np.float32) for name, values in likeness.items()}
    return Evidence(images, rows, {}, slice(6, 6), given, {}, {})


def test_what_is_broader_is_seen_where_words_do_not_say_it() -> None:
    found = evidence({"cat": [0.9, 0.8, 0.1, 0.2, 0.1, 0.2], "animal": [0.8, 0.7, 0.9, 0.9, 0.1, 0.1]})
    assert relation(found, "cat", "animal", [4, 5]) == "broader"
    assert relation(found, "animal", "cat", [4, 5]) == "narrower"
    assert relation(evidence({}), "cat", "animal", [4, 5]) == "other"
    assert relation(evidence({}), "red star", "star", [4, 5]) == "broader"
    alike = evidence({"cat": [0.9, 0.8, 0.9, 0.8, 0.1, 0.2], "animal": [0.8, 0.7, 0.9, 0.9, 0.1, 0.1]})
    assert relation(alike, "cat", "animal", [4, 5]) == "same"


def test_a_shorter_name_of_the_same_images_is_no_broader_one() -> None:
    rows = {digest: row for row, digest in enumerate("abcdef")}
    images = {"level stripes": ["a", "b"], "level": ["c", "d"], "stripes": ["e", "f"]}
    likeness = {"level stripes": np.array([0.8, 0.9, 0.9, 0.8, 0.3, 0.2], np.float32)}
    found = Evidence(images, rows, {}, slice(6, 6), likeness, {}, {})
    assert relation(found, "level stripes", "level", []) == "same"
    assert relation(found, "level stripes", "stripes", []) == "broader"


def test_a_name_is_needed_as_far_as_strong_images_show_it() -> None:
    """Of 100 held-out images the two strongest count, and two exemplars; one of each shows a cat."""
    rows = {digest: row for row, digest in enumerate("abcd")}
    values = np.concatenate([np.zeros(4), np.arange(100)]).astype(np.float32)[:, None]
    likeness = np.concatenate([[0.9, 0.8, 0.1, 0.2], np.full(98, 0.9), [0.1, 0.7]]).astype(np.float32)
    found = Evidence(
        {"cat": ["a", "b"], "rest": ["c", "d"]}, rows, {"units": values}, slice(4, 104), {"cat": likeness},
        {"cat": {"0" * 64: 0.6, "1" * 64: 0.3}}, {},
    )  # fmt: skip
    shown = tuple(Exemplar(digest=digit * 64, activation=1.0, source="x.png") for digit in "01")
    unit = record("cat", {}).model_copy(update={"exemplars": shown})
    assert found.seen("cat", unit, [2, 3]) == 0.5
    assert found.seen("cat", unit.model_copy(update={"exemplars": shown[:1]}), [2, 3]) == pytest.approx(2 / 3)
    assert evidence({}).seen("cat", unit, [4, 5]) is None


def test_a_label_explains_the_unit_where_its_likeness_goes_with_the_activation() -> None:
    likeness = np.linspace(0, 1, 100, dtype=np.float32)
    whole = _explained(likeness, likeness * 3)
    assert whole == pytest.approx({"correlation": 1, "auprc": 1, "auprc_chance": 0.05})
    against = _explained(likeness, -likeness)
    assert against["correlation"] == pytest.approx(-1)
    assert against["auprc"] < 0.05


def test_verdicts_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """Which tested a name's images against the label's."""
    folder = finish(tmp_path / "run", {"fc/0": ["lake"]}, verdicts={"fc/0": Verdict(word="verified", concept="lake")})
    tested = {"concept": "sea", "relation": "other", "auc": 0.9, "against": 0.5, "needed": 0.4}
    line = json.loads((folder / "labels.jsonl").read_text())
    line["verdict"]["tested"] = [tested]
    (folder / "labels.jsonl").write_text(json.dumps(line) + "\n")
    (verdict,) = RunFolder(folder).verdicts.values()
    assert [(one.concept, one.auc, one.needed) for one in verdict.tested] == [("sea", 0.9, 0.4)]
    assert rows._verdict(verdict)["tested"] == [["sea", "other", 0.9, None, 0.4]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_verifies_nothing(value: float) -> None:
    """It ranks above all others: the label would activate the unit on every image."""
    values = np.array([5, 5, 0, 0, 0, 0, 1, 0], np.float32)[:, None]
    found = replace(evidence({}), activations={"units": values}, random=slice(6, 8))
    assert _verdict(found, record("cat", {}), ["cat"], ["cat", "rest"], 0).word == "verified"
    values[0] = value
    verdict = _verdict(found, record("cat", {}), ["cat"], ["cat", "rest"], 0)
    assert (verdict.word, verdict.because) == ("not tested", "its activation is not finite on 1 of the images")


def test_labels_of_the_toy_world_are_verified_and_wrong_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from dnd.api import Runtime
    from dnd.evaluation.reopen import Opened
    from dnd.evaluation.verify import verify
    from dnd.models.weights import Weights
    from dnd.pipeline.build import Builder
    from dnd.pipeline.execute import execute
    from dnd.pipeline.job import Job
    from dnd.runtime.progress import Meter
    from dnd.target.hooked import HookedTarget

    toys.MOOD.__init__()  # type: ignore[misc]
    photos, registry = toys.make_photos(tmp_path / "photos", 90), toys.registry()
    run = toys.toy_run(photos, concepts={"n": 1})
    result = execute(run, tmp_path / "run", registry=registry, live=(toys.Net(), toys.preprocess))
    hooked = HookedTarget(toys.Net(), toys.preprocess, ["units"], device="cpu", pooling="mean")
    builder = Builder(registry, Runtime("cpu", Path))
    with Meter(Console(quiet=True)) as meter:
        job = Job(run, builder, result.store, meter, Weights.default().digest)
        opened = Opened(result.folder, job, hooked, "toy", builder.probing(run.probing), run.images.n)
        records = list(result.records())
        right = verify(opened, records, None)
        swapped = [
            one.model_copy(update={"labels": (ScoredConcept(concept=label, score=1.0),)})
            for one, label in zip(records, ("green", "blue", "red"), strict=False)
        ]
        wrong = verify(opened, swapped, None)
    assert [(one.concept, one.word) for one in right.values()] == [(name, "verified") for name in toys.COLOURS]
    assert [(one.n_images, one.auc, one.correlation) for one in right.values()] == [(4, 1, None)] * 3
    assert [one.concept for one in wrong.values()] == ["green", "blue", "red"]
    assert "verified" not in [one.word for one in wrong.values()]
