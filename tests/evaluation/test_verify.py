"""Verdicts on labels: the rules, and the whole way over the toy world."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toys

from dnd.evaluation.verify import Evidence, _explained, _relation, judge, names_of
from dnd.results.unit import Candidate, ScoredConcept, UnitResult
from dnd.results.verdict import Neighbour, Relation


def beside(relation: Relation, auc: float, against: float, concept: str = "x") -> Neighbour:
    return Neighbour(concept=concept, relation=relation, auc=auc, against=against)


@pytest.mark.parametrize(
    ("drive", "names", "verdict"),
    [
        (0.95, [], "verified"),
        (0.5, [], "not driven"),
        (0.95, [beside("broader", 0.97, 0.5)], "too narrow"),
        (0.95, [beside("broader", 0.97, 0.1)], "verified"),  # it activates the unit, but much less than the label
        (0.95, [beside("broader", 0.6, 0.4)], "verified"),
        (0.65, [beside("narrower", 0.95, 0.9)], "too broad"),
        (0.95, [beside("narrower", 0.97, 0.9)], "verified"),  # all images of the label activate it
        (0.6, [beside("narrower", 0.7, 0.9)], "not driven"),
        (0.95, [beside("other", 0.95, 0.5)], "one of several"),
        (0.95, [beside("same", 0.95, 0.5)], "verified"),
        (0.95, [beside("other", 0.95, 0.5, "star"), beside("broader", 0.95, 0.4, "red")], "too narrow"),
    ],
)
def test_the_verdict_follows_from_what_activates_the_unit(drive: float, names: list[Neighbour], verdict: str) -> None:
    assert judge(drive, names)[0] == verdict


def test_the_name_that_decides_is_given() -> None:
    assert judge(0.9, [beside("other", 0.9, 0.4, "star"), beside("other", 0.9, 0.6, "ring")])[1] == "ring"


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
    return Evidence(images, rows, {}, slice(6, 6), given, {})


def test_what_is_broader_is_seen_where_words_do_not_say_it() -> None:
    found = evidence({"cat": [0.9, 0.8, 0.1, 0.2, 0.1, 0.2], "animal": [0.8, 0.7, 0.9, 0.9, 0.1, 0.1]})
    assert _relation(found, "cat", "animal", [4, 5]) == "broader"
    assert _relation(found, "animal", "cat", [4, 5]) == "narrower"
    assert _relation(evidence({}), "cat", "animal", [4, 5]) == "other"
    assert _relation(evidence({}), "red star", "star", [4, 5]) == "broader"
    alike = evidence({"cat": [0.9, 0.8, 0.9, 0.8, 0.1, 0.2], "animal": [0.8, 0.7, 0.9, 0.9, 0.1, 0.1]})
    assert _relation(alike, "cat", "animal", [4, 5]) == "same"


def test_a_label_explains_the_unit_where_its_likeness_goes_with_the_activation() -> None:
    likeness = np.linspace(0, 1, 100, dtype=np.float32)
    whole = _explained(likeness, likeness * 3)
    assert whole == pytest.approx({"correlation": 1, "auprc": 1, "auprc_chance": 0.05})
    against = _explained(likeness, -likeness)
    assert against["correlation"] == pytest.approx(-1)
    assert against["auprc"] < 0.05


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
