"""Planted units judged by their target, which knows every name that is right (`Target.grade`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dnd.api import Grading, Label
from dnd.evaluation.estimates import Figure, left_out
from dnd.evaluation.tables import Row

Grader = Callable[[Sequence[Label]], Grading | None]
_SHUFFLES = 20
_CONSTANTS = 40


def graded(rows: Sequence[Row], grade: Grader, seed: int = 0) -> Figure | None:
    """1 where the target calls the label right, all units counted: for noise, no label is the right answer.

    Shuffled: the mean of 20 shifts of all labels by a random number of units. Constant: the best of no label and
    of the 40 commonest labels, on all other units. None where the target knows no truth.
    """
    own = _right(rows, rows, grade)
    if own is None:
        return None
    n = len(rows)
    steps = np.random.default_rng(seed).permutation(np.arange(1, n))[:_SHUFFLES]
    shifted = [_right(rows, [*rows[step:], *rows[:step]], grade) for step in steps.tolist()]
    commonest: dict[str, Row] = {}
    counts: dict[str, int] = {}
    for row in rows:
        name = row.labels[0] if row.labels else ""
        commonest.setdefault(name, row)
        counts[name] = counts.get(name, 0) + 1
    commonest[""] = Row(rows[0].unit, (), "uninterpretable")
    names = ["", *sorted((name for name in counts if name), key=lambda name: (-counts[name], name))[:_CONSTANTS]]
    constants = [_right(rows, [commonest[name]] * n, grade) for name in names]
    table = np.stack([np.zeros(n) if those is None else those for those in constants], axis=1)
    best = int(np.nanargmax(np.nanmean(table, axis=0)))
    return Figure(
        "match.graded",
        own,
        np.mean([those for those in shifted if those is not None], axis=0) if shifted else np.full(n, np.nan),
        left_out(table),
        names[best] or "(no label)",
    )


def _right(units: Sequence[Row], said: Sequence[Row], grade: Grader) -> npt.NDArray[np.float64] | None:
    """(n,): whether what is said of one unit is right of another; NaN for units the target knows nothing of."""
    labels = [
        Label(unit.unit, row.status, tuple((text, 1.0) for text in row.labels))
        for unit, row in zip(units, said, strict=True)
    ]
    grading = grade(labels)
    if grading is None:
        return None
    if sum(g.total for g in grading.grades) == len(labels):
        return np.array([float(str(label.unit) not in grading.wrong) for label in labels])
    known = [grade([label]) is not None for label in labels]
    return np.array(
        [
            float(str(label.unit) not in grading.wrong) if knows else np.nan
            for label, knows in zip(labels, known, strict=True)
        ]
    )
