"""Right and wrong as a reader of the report marked them (docs/results.md): one of its columns, beside a truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dnd.api import Unit
from dnd.api.unit_table import read_unit_table
from dnd.evaluation.estimates import Figure
from dnd.evaluation.truth import Case

_RIGHT = {"right": 1.0, "wrong": 0.0}


def read_marks(file: Path) -> dict[Unit, tuple[str, float]]:
    """Of each marked unit the label that was marked, and 1 for right, 0 for wrong; nothing where a truth has none."""
    if file.suffix.lower() not in (".csv", ".tsv"):
        return {}
    table = read_unit_table(file)
    if not {"label", "mark"} <= set(table.columns):
        return {}
    return {
        unit: (cells["label"], _RIGHT[cells["mark"]]) for _, unit, cells in table.units() if cells["mark"] in _RIGHT
    }


def marks_figure(cases: Sequence[Case], marks: Mapping[Unit, tuple[str, float]]) -> list[Figure]:
    """The share of right ones; a mark of another label than the unit has now counts nothing."""
    own = np.full(len(cases), np.nan)
    for place, case in enumerate(cases):
        label, mark = marks.get(case.row.unit, ("", np.nan))
        if label == (case.row.labels[0] if case.row.labels else ""):
            own[place] = mark
    nothing = np.full(len(cases), np.nan)
    return [Figure("marks.right", own, nothing, nothing, "")] if not np.isnan(own).all() else []
