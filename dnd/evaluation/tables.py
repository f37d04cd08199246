"""Label tables: a run folder's, or another tool's CSV, told apart by its columns.

| columns | written by | units count from |
|---|---|---|
| layer,unit,status,label,...,label_2,...,label_3 | dnd | 0 |
| layer,unit,description | MILAN, CLIP-Dissect | 0 |
| Neuron ID,Label 1..3 or Neuron ID,label | Describe-and-Dissect's reference code | 0 |
| unit,category,label,score | Network Dissection | 1 |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnd.api import Unit
from dnd.errors import UsageError
from dnd.text import read_csv, whole_number

_LAYOUTS = (
    "layer,unit,description; Neuron ID,label; Neuron ID,Label 1..3; Network Dissection's unit,category,label,score"
)


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
    if source.is_dir() and not (source / "labels.csv").is_file():
        raise UsageError(f"{source} holds no labels.csv", "Name a finished run's folder, or a label table.")
    lines = read_csv(source / "labels.csv" if source.is_dir() else source)
    columns = list(lines[0][1]) if lines else []
    read = _layout(columns)
    if read is None:
        what = f"its columns are {', '.join(columns)}" if columns else "it has no rows"
        raise UsageError(f"{source} is no label table that is known: {what}", f"Known columns: {_LAYOUTS}.")
    rows = []
    for number, cells in lines:
        try:
            rows.append(read(cells))
        except ValueError as error:
            raise UsageError(f"{source}, line {number}: {error}") from error
    twice = [unit for unit, count in Counter(row.unit for row in rows).items() if count > 1]
    if twice:
        raise UsageError(f"{source} has several rows for unit {twice[0].index}", "One row per unit and layer.")
    return rows


def _layout(columns: list[str]) -> Callable[[Mapping[str, str]], Row] | None:
    has = set(columns)
    if {"unit", "status", "label"} <= has:
        return lambda cells: _row(cells, "unit", ["label", "label_2", "label_3"])
    if {"unit", "description"} <= has:
        return lambda cells: _row(cells, "unit", ["description"])
    if "neuron id" in has and {"label", "label 1"} & has:
        names = ["label"] if "label" in has else ["label 1", "label 2", "label 3"]
        return lambda cells: _row(cells, "neuron id", names)
    if {"unit", "category", "label", "score"} <= has:
        return _network_dissection
    return None


def _row(cells: Mapping[str, str], unit: str, names: list[str]) -> Row:
    labels = tuple(cells[name] for name in names if cells.get(name))
    status = cells.get("status") or ("labelled" if labels else "uninterpretable")
    if status not in ("labelled", "uninterpretable", "failed") or (status == "labelled" and not labels):
        raise ValueError(f"status {status!r} with {len(labels)} labels")
    return Row(Unit(cells.get("layer", ""), whole_number(cells[unit])), labels if status == "labelled" else (), status)


def _network_dissection(cells: Mapping[str, str]) -> Row:
    """Labels such as `street-s` and `swimming_pool-s`: words joined by _, -s and -c mark scenes and colours."""
    number = whole_number(cells["unit"])
    if number < 1:
        raise ValueError("unit 0 in a table of Network Dissection, whose units count from 1; rename its columns")
    label = re.sub(r"-[sc]$", "", cells["label"]).replace("_", " ")
    return Row(
        Unit(cells.get("layer", ""), number - 1), (label,) if label else (), "labelled" if label else "uninterpretable"
    )
