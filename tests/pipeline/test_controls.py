"""Candidates compared with the images of other units' labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from dnd.api import Unit, auc
from dnd.pipeline.controls import LEAST, MOST, Controls, control_auc, control_labels


def test_the_control_auc_is_the_median_over_labels() -> None:
    rng = np.random.default_rng(0)
    own = rng.integers(0, 6, 7).astype(np.float32)
    controls = rng.integers(0, 6, (9, 5)).astype(np.float32)
    assert control_auc(own, controls) == pytest.approx(np.median([auc(own, row) for row in controls]))


UNITS = (Unit("a", 0), FIRST := Unit("a", 1), SECOND := Unit("b", 0))


def numbered(n: int) -> dict[str, npt.NDArray[np.float32]]:
    """By label, a label's number for the first unit, and so on in steps of a hundred: 2 images, 3 units."""
    return {f"thing{i}": np.tile(np.array([i, 100 + i, 200 + i], np.float32), (2, 1)) for i in range(n)}


def test_labels_that_share_a_word_with_a_candidate_are_no_controls() -> None:
    others = numbered(LEAST)
    controls = Controls({"red stars": others["thing0"], "a Ring": others["thing1"], **others}, UNITS)
    found = controls.of(FIRST, ["star", "ring of fire"])
    assert found is not None
    assert found.tolist() == [[100 + i] * 2 for i in range(LEAST)]
    found = controls.of(SECOND, ["star", "ring"])
    assert found is not None
    assert found[:, 0].tolist() == [200 + i for i in range(LEAST)]
    assert Controls(others, UNITS).of(FIRST, ["star", "thing0"]) is None  # one too few is left
    most = Controls(numbered(MOST + 5), UNITS).of(FIRST, ["star"])
    assert most is not None
    assert len(most) == MOST


def test_labels_on_which_the_unit_is_not_finite_are_left_out() -> None:
    pool = numbered(LEAST)
    pool["thing3"][1, 1] = np.nan
    assert Controls(pool, UNITS).of(FIRST, ["dog"]) is None
    assert Controls(pool, UNITS).of(SECOND, ["dog"]) is not None


def test_few_labels_of_many_are_taken_and_another_unit_changes_one_at_most() -> None:
    labels = [f"label {i}" for i in range(200)]
    some, more = control_labels(labels, 1), control_labels([*labels, "another"], 1)
    assert len(some) == len(more) == 2 * MOST
    assert len(set(some) & set(more)) >= 2 * MOST - 1
    assert some != control_labels(labels, 2)
    assert some == control_labels(labels[::-1] * 2, 1)


def test_a_shift_of_all_synthetic_images_is_no_reason_for_a_label() -> None:
    """Units without a meaning, moved by half a standard deviation by whatever is synthetic: of five candidates the
    best one reaches an AUC of 0.7 by chance in 6 of 100 units without such a shift."""
    rng = np.random.default_rng(0)
    against_random, against_both = 0, 0
    for _ in range(400):
        probing = rng.normal(size=512).astype(np.float32)
        candidates = rng.normal(0.5, size=(5, 10)).astype(np.float32)
        controls = rng.normal(0.5, size=(MOST, 10)).astype(np.float32)
        aucs = [auc(row, probing) for row in candidates]
        best = candidates[int(np.argmax(aucs))]
        against_random += max(aucs) >= 0.7
        against_both += min(max(aucs), control_auc(best, controls)) >= 0.7
    assert against_random > 240
    assert against_both < 60


def test_a_unit_that_responds_to_some_of_the_controls_keeps_its_label() -> None:
    rng = np.random.default_rng(0)
    controls = rng.normal(0.5, size=(MOST, 10)).astype(np.float32)
    controls[: MOST // 4] += 3
    own = rng.normal(3.5, size=10).astype(np.float32)
    assert control_auc(own, controls) > 0.95
