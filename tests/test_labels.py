"""From scores to labels."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dnd.api import Label, Unit
from dnd.labels import choose, drive
from dnd.output import labels_csv

UNIT = Unit("layer4", 7)
numbers = st.lists(st.integers(-50, 50), min_size=1, max_size=20)


@given(numbers, numbers)
def test_drive_is_the_chance_of_being_stronger(synthetic: list[int], ordinary: list[int]) -> None:
    pairs = [(s > o) + 0.5 * (s == o) for s in synthetic for o in ordinary]
    got = drive(np.array(synthetic, np.float32), np.array(ordinary, np.float32))
    assert abs(got - np.mean(pairs)) < 1e-9


def test_the_best_score_wins_and_ties_go_to_the_earlier_candidate() -> None:
    label = choose(UNIT, ["a", "b", "c", "d"], [0.1, 0.9, 0.9, 0.5], [1.0] * 4, min_drive=0.7)
    assert label == Label(UNIT, "labelled", (("b", 0.9), ("c", 0.9), ("d", 0.5)))


def test_a_candidate_that_does_not_drive_the_unit_is_no_label() -> None:
    label = choose(UNIT, ["red"], [0.9], [0.6], min_drive=0.7)
    assert label.status == "uninterpretable"
    assert "'red'" in label.reason
    assert "0.60 < 0.70" in label.reason


def test_a_score_can_be_too_low_as_well() -> None:
    assert choose(UNIT, ["red"], [0.1], [0.9], min_drive=0.7).status == "labelled"
    label = choose(UNIT, ["red"], [0.1], [0.9], min_drive=0.7, min_score=0.2)
    assert label.status == "uninterpretable"
    assert "0.10 < 0.20" in label.reason


def test_only_labelled_units_show_concepts_in_the_table() -> None:
    shown = labels_csv(
        [
            Label(UNIT, "labelled", (("red, or so", 0.5), ("blue", 0.25))),
            Label(Unit("layer4", 8), "uninterpretable", (("red", 0.1),), "weak"),
            Label(Unit("layer4", 9), "failed", (), 'captions: "no"'),
        ]
    )
    assert shown.splitlines() == [
        "layer,unit,status,label,score,label_2,score_2,label_3,score_3,reason",
        'layer4,7,labelled,"red, or so",0.5000,blue,0.2500,,,',
        "layer4,8,uninterpretable,,,,,,,weak",
        'layer4,9,failed,,,,,,,"captions: ""no"""',
    ]
