"""Label tables: a run folder's, or another tool's CSV; its columns say which.

| columns | written by | units count from |
|---|---|---|
| layer,unit,status,label,...,label_2,...,label_3 | dnd | 0 |
| layer,unit,description | MILAN, CLIP-Dissect | 0 |
| Neuron ID,Label 1..3 or Neuron ID,label | Describe-and-Dissect's reference code | 0 |
| neuron,concept | INVERT | 0 |
| unit,weight0,concept0,weight1,concept1,... | Linear-Explanations | 0 |
| unit,category,label,score | Network Dissection | 1 |

The column of unit numbers may have any of the names that it has in a truth file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from dnd.api import Unit
from dnd.api.unit_table import UnitTable, read_unit_table
from dnd.errors import UsageError

_LAYOUTS = (
    "layer,unit,description; Neuron ID,label; Neuron ID,Label 1..3; neuron,concept; unit,weight0,concept0,...;"
    " Network Dissection's unit,category,label,score"
)
_Cells = Mapping[str, str]
_Read = Callable[[Unit, _Cells], "Row"]


@dataclass(frozen=True)
class Row:
    """What a table says of one unit."""

    unit: Unit
    """Its layer is empty where the table names none."""
    labels: tuple[str, ...]
    """Best first, at most three; none where the unit was not labelled."""
    status: str = "labelled"
    """ "labelled", "uninterpretable" (also for an empty cell of another tool) or "failed"."""


def read_labels(source: Path) -> list[Row]:
    """The rows of a run folder's labels.csv, or of a CSV; UsageError where it is no label table."""
    return read_label_table(source)[0]


def read_label_table(source: Path) -> tuple[list[Row], str]:
    """`read_labels`, and in words how the table was read."""
    if source.is_dir() and not (source / "labels.csv").is_file():
        raise UsageError(f"{source} holds no labels.csv", "Name a finished run's folder, or a label table.")
    table = read_unit_table(source / "labels.csv" if source.is_dir() else source)
    layout = _layout(table)
    if layout is None:
        what = f"its columns are {', '.join(table.columns)}" if table.columns else "it has no rows"
        raise UsageError(f"{source} is no label table that is known: {what}", f"Known columns: {_LAYOUTS}.")
    read, where = layout
    rows = []
    for number, unit, cells in table.units():
        try:
            rows.append(read(unit, cells))
        except ValueError as error:
            raise UsageError(f"{source}, line {number}: {error}") from error
    if not rows:
        raise UsageError(f"{source} is no label table that is known: it has no rows", f"Known columns: {_LAYOUTS}.")
    twice = [unit for unit, times in Counter(row.unit for row in rows).items() if times > 1]
    if twice:
        raise UsageError(f"{source} has several rows for unit {twice[0].index}", "One row per unit and layer.")
    return rows, table.reading(where)


def _layout(table: UnitTable) -> tuple[_Read, str] | None:
    """How to read a row, and in words where its labels are from; None for columns that are not known."""
    has = set(table.columns)
    if not table.unit_column:
        return None
    if {"category", "label", "score"} <= has:
        return _network_dissection, "labels from 'label' of Network Dissection, whose units count from 1"
    if "concept0" in has:
        return _linear, "labels from 'concept0' and on, heaviest first"
    for names in (["label", "label 2", "label 3"], ["label 1", "label 2", "label 3"], ["description"], ["concept"]):
        if names[0] in has and not (names == ["concept"] and "kind" in has):
            there = [name for name in names if name in has]
            return partial(_row, there), f"labels from {', '.join(map(repr, there))}"
    return None


def _row(names: list[str], unit: Unit, cells: _Cells) -> Row:
    labels = tuple(cells[name] for name in names if cells[name])
    status = cells.get("status") or ("labelled" if labels else "uninterpretable")
    if status not in ("labelled", "uninterpretable", "failed") or (status == "labelled" and not labels):
        raise ValueError(f"status {status!r} with {len(labels)} labels")
    return Row(unit, labels if status == "labelled" else (), status)


def _linear(unit: Unit, cells: _Cells) -> Row:
    """The three heaviest concepts of a sum; a weight of 0 fills an empty place, one below 0 speaks against it."""
    weighted = []
    for place in count():
        concept, weight = cells.get(f"concept{place}"), cells.get(f"weight{place}", "1")
        if concept is None:
            break
        if concept and weight:
            weighted.append((float(weight), concept))
    heavy = sorted((pair for pair in weighted if pair[0] > 0), key=lambda pair: -pair[0])
    labels = tuple(concept for _, concept in heavy[:3])
    return Row(unit, labels, "labelled" if labels else "uninterpretable")


def _network_dissection(unit: Unit, cells: _Cells) -> Row:
    """Labels such as `street-s` and `swimming_pool-s`: words joined by _, -s and -c mark scenes and colours."""
    if unit.index < 1:
        raise ValueError("unit 0 in a table of Network Dissection, whose units count from 1; rename its columns")
    label = re.sub(r"-[sc]$", "", cells["label"]).replace("_", " ")
    labels = (label,) if label else ()
    return Row(Unit(unit.layer, unit.index - 1), labels, "labelled" if label else "uninterpretable")
