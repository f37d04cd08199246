"""Truth files, and which row of a label table each truth belongs to.

* Text: line i is the truth of unit i (from 0); synonyms are joined by ` | `; an empty line is a unit without truth.
* CSV `unit,text`, optionally `layer`: several rows of a unit are synonyms, or several annotators.
* CSV `unit,kind,concept`, optionally `layer`: planted units. Here ` | ` joins *different* meanings of one unit, and
  a label has to give all of them; an empty concept means that the unit has no meaning and no label is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnd.api import Unit
from dnd.errors import UsageError
from dnd.evaluation.tables import Row, read_csv, whole_number

_SEPARATOR = " | "


@dataclass(frozen=True)
class Truth:
    """What a unit truly means."""

    meanings: tuple[tuple[str, ...], ...]
    """Its meanings, each as one or several texts that say the same; none for noise."""
    kind: str = ""
    """Of a planted unit: "single", "union", "noise", ...; else empty."""


@dataclass(frozen=True)
class Case:
    """A unit, what is said of it and what is true."""

    row: Row
    truth: Truth | None


def read_truth(file: Path) -> dict[Unit, Truth]:
    """Truths by unit; the layer is empty where the file names none. UsageError where it is no truth file."""
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    first = [cell.strip().strip('"').lower() for cell in (lines or [""])[0].split(",")]
    if "unit" not in first:
        return _from_lines(file, lines)
    if "text" in first:
        return _from_rows(file)
    if {"kind", "concept"} <= set(first):
        return _planted(file)
    raise UsageError(
        f"{file} is no truth file that is known: its columns are {', '.join(first)}",
        "Write one text per line, or a CSV with the columns unit,text or layer,unit,text.",
    )


def join(rows: Sequence[Row], truths: Mapping[Unit, Truth]) -> list[Case]:
    """Each row with its truth, rows without one left out; UsageError where layers do not let them be matched."""
    said, known = {row.unit.layer for row in rows}, {unit.layer for unit in truths}
    if len(said) == 1 and len(known) == 1 and "" in said | known:
        by_index = {unit.index: truth for unit, truth in truths.items()}
        cases = [Case(row, by_index[row.unit.index]) for row in rows if row.unit.index in by_index]
    elif "" in said | known:
        without, layers = ("truth", said) if "" in known else ("label table", known)
        raise UsageError(
            f"the {without} names no layer, and there are several: {', '.join(sorted(layers))}",
            "Add a column `layer` to it.",
        )
    else:
        cases = [Case(row, truths[row.unit]) for row in rows if row.unit in truths]
    if not cases:
        raise UsageError(
            f"the truth is of other units: labels of {_which(r.unit for r in rows)}, truth of {_which(truths)}",
            "Layers must be named alike, and units counted from 0.",
        )
    return cases


def _which(units: object) -> str:
    found = sorted(set(units))  # type: ignore[call-overload]
    return f"{found[0]} to {found[-1]}" if found else "none"


def _from_lines(file: Path, lines: Sequence[str]) -> dict[Unit, Truth]:
    found = {}
    for number, line in enumerate(lines):
        texts = tuple(text.strip() for text in line.split(_SEPARATOR) if text.strip())
        if texts:
            found[Unit("", number)] = Truth((texts,))
    if not found:
        raise UsageError(f"{file} is empty", "Write the truth of unit i in line i, or a CSV unit,text.")
    return found


def _from_rows(file: Path) -> dict[Unit, Truth]:
    texts: dict[Unit, list[str]] = {}
    for unit, cells in _units(file):
        if cells["text"]:
            texts.setdefault(unit, []).append(cells["text"])
    return {unit: Truth((tuple(those),)) for unit, those in texts.items()}


def _planted(file: Path) -> dict[Unit, Truth]:
    found = {}
    for unit, cells in _units(file):
        meanings = tuple((text.strip(),) for text in cells["concept"].split(_SEPARATOR) if text.strip())
        found[unit] = Truth(meanings, cells["kind"])
    return found


def _units(file: Path) -> list[tuple[Unit, dict[str, str]]]:
    found = []
    for number, cells in read_csv(file):
        try:
            found.append((Unit(cells.get("layer", ""), whole_number(cells["unit"])), cells))
        except ValueError as error:
            raise UsageError(f"{file}, line {number}: {error}") from error
    return found
