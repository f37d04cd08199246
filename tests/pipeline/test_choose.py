"""From scores to labels."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnd.api import Label, Unit, auc
from dnd.config.calibration import Calibration
from dnd.errors import PluginError
from dnd.pipeline.choose import choose
from dnd.plugin.validate import checked_label
from dnd.results.write import labels_csv
from dnd.text import csv_lines

UNIT = Unit("layer4", 7)
numbers = st.lists(st.integers(-50, 50), min_size=1, max_size=20)


@given(numbers, numbers)
def test_auc_is_the_chance_of_being_stronger(synthetic: list[int], ordinary: list[int]) -> None:
    pairs = [(s > o) + 0.5 * (s == o) for s in synthetic for o in ordinary]
    got = auc(np.array(synthetic, np.float32), np.array(ordinary, np.float32))
    assert abs(got - np.mean(pairs)) < 1e-9


def test_auc_of_what_is_no_number_is_none_either() -> None:
    for positives, negatives in (([np.nan, 2], [1]), ([2], [np.nan, 1])):
        assert np.isnan(auc(np.array(positives, np.float32), np.array(negatives, np.float32)))


def test_auc_is_a_half_where_there_is_nothing_to_compare() -> None:
    some, none = np.ones(3, np.float32), np.zeros(0, np.float32)
    assert auc(none, some) == auc(some, none) == auc(none, none) == 0.5


def test_the_best_score_wins_and_ties_go_to_the_earlier_candidate() -> None:
    label = choose(UNIT, {"a": 0.1, "b": 0.9, "c": 0.9, "d": 0.5}, dict.fromkeys("abcd", 1.0), min_auc=0.7)
    assert label == Label(UNIT, "labelled", (("b", 0.9), ("c", 0.9), ("d", 0.5)))


def test_a_candidate_that_does_not_drive_the_unit_is_no_label() -> None:
    label = choose(UNIT, {"red": 0.9}, {"red": 0.6}, min_auc=0.7)
    assert label.status == "uninterpretable"
    assert "'red'" in label.reason
    assert "0.60 < 0.70" in label.reason


def test_a_candidate_that_drives_the_unit_no_more_than_other_labels_is_no_label() -> None:
    label = choose(UNIT, {"red": 0.9, "blue": 0.1}, {"red": 0.9}, {"red": 0.6, "blue": 0.9}, min_auc=0.7)
    assert label.status == "uninterpretable"
    assert label.reason == "images of 'red' drive it little more than those of other units' labels: 0.60 < 0.70"
    assert choose(UNIT, {"red": 0.9}, {"red": 0.9}, {"red": 0.7}, min_auc=0.7).status == "labelled"
    assert choose(UNIT, {"red": 0.9}, {"red": 0.9}, {"blue": 0.6}, min_auc=0.7).status == "labelled"  # not compared


def test_a_score_can_be_too_low_as_well() -> None:
    assert choose(UNIT, {"red": 0.1}, {"red": 0.9}, min_auc=0.7).status == "labelled"
    label = choose(UNIT, {"red": 0.1}, {"red": 0.9}, min_auc=0.7, min_score=0.2)
    assert label.status == "uninterpretable"
    assert "0.10 < 0.20" in label.reason


def test_what_just_reaches_a_threshold_passes() -> None:
    surely = Calibration.model_construct(first=((0.0, 0.5), (1.0, 0.5)), later=((0.0, 0.5),))
    least = {"min_auc": 0.7, "min_score": 0.2, "calibration": surely, "min_confidence": 0.5}
    assert choose(UNIT, {"red": 0.2}, {"red": 0.7}, **least).status == "labelled"  # type: ignore[arg-type]
    for more in ({"min_auc": 0.71}, {"min_score": 0.21}, {"min_confidence": 0.51}):
        label = choose(UNIT, {"red": 0.2}, {"red": 0.7}, **{**least, **more})  # type: ignore[arg-type]
        assert label.status == "uninterpretable"


def test_only_labelled_units_show_concepts_in_the_table() -> None:
    shown = labels_csv(
        [
            Label(UNIT, "labelled", (("red, or so", 0.5), ("blue", 0.25))),
            Label(Unit("layer4", 8), "uninterpretable", (("red", 0.1),), "weak"),
            Label(Unit("layer4", 9), "failed", (), 'captions: "no"'),
        ]
    )
    assert "".join(shown).splitlines() == [
        "layer,unit,status,label,score,label_2,score_2,label_3,score_3,reason",
        'layer4,7,labelled,"red, or so",0.5000,blue,0.2500,,,',
        "layer4,8,uninterpretable,,,,,,,weak",
        'layer4,9,failed,,,,,,,"captions: ""no"""',
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=4))
def test_csv_reads_back_to_the_same_cells(row: list[str]) -> None:
    rows = [["a", "b\rc"], row]
    assert list(csv.reader(csv_lines(rows))) == rows


@pytest.mark.parametrize(
    "label",
    [
        "dots",
        Label(UNIT, "labelled", ()),
        Label(UNIT, "labelled", 5),  # type: ignore[arg-type]
        Label(UNIT, "labelled", ("ab",)),  # type: ignore[arg-type]
        Label(UNIT, "labelled", (("dots", None),)),  # type: ignore[arg-type]
        Label(UNIT, "labelled", (("dots", "0.5"),)),  # type: ignore[arg-type]
        Label(UNIT, "labelled", (("\ud83d", 1.0),)),
        Label(UNIT, "sure", (("dots", 1.0),)),
        Label(UNIT, "labelled", (("dots", float("nan")),)),
        Label(UNIT, "labelled", ((" ", 1.0),)),
        Label(UNIT, "labelled", (("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0))),
    ],
    ids=ascii,
)
def test_what_is_no_label_of_a_method_is_refused(label: Any) -> None:
    assert checked_label(Label(UNIT, "labelled", (("dots", 1.0),))).status == "labelled"
    with pytest.raises(PluginError, match="not a label"):
        checked_label(label)
