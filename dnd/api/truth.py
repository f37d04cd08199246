"""Truth files: what units are known to mean.

* Text: line i is the truth of unit i (from 0); synonyms are joined by ` | `; an empty line is a unit without truth.
* CSV or TSV with a column of unit numbers (`unit`, `neuron`, `index`, `Neuron ID`, ...) and one of texts (`text`,
  `label`, `description`, `concept` or `summary`), optionally `layer`: several rows of a unit are synonyms, or several
  annotators.
* CSV or TSV `unit,kind,concept`, optionally `layer`: planted units. Here ` | ` joins *different* meanings of one unit,
  and a label has to give all of them; an empty concept means that the unit has no meaning and no label is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnd.api.records import Unit
from dnd.api.unit_table import (
    DELIMITERS,
    UNIT_COLUMNS,
    UnitTable,
    looks_like_table,
    plain_name,
    read_lines,
    read_unit_table,
)
from dnd.errors import UsageError

_SEPARATOR = " | "
_TEXTS = ("text", "label", "description", "concept", "summary")
_HEADERS = frozenset(
    {*_TEXTS, "labels", "concepts", "descriptions", "explanation", "explanations", "name", "truth"} - {"text"}
)
"""What a first line is that names the column below it. "text" may be what a unit responds to."""
_SHOWN = 40
_KNOWN = "Write one text per line in a .txt, or a CSV with the columns unit,text or layer,unit,text."


@dataclass(frozen=True)
class Truth:
    """What a unit truly means."""

    meanings: tuple[tuple[str, ...], ...]
    """Its meanings, each as one or several texts that say the same; none for noise."""
    kind: str = ""
    """Of a planted unit: "single", "union", "noise", ...; else empty."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """Of each meaning the first text."""
        return tuple(texts[0] for texts in self.meanings)


def read_truth(file: Path) -> dict[Unit, Truth]:
    """Truths by unit; the layer is empty where the file names none. UsageError where it is no truth file."""
    return read_truth_file(file)[0]


def read_truth_file(file: Path) -> tuple[dict[Unit, Truth], str]:
    """`read_truth`, and in words how the file was read."""
    lines = read_lines(file)
    if file.suffix.lower() not in (".csv", ".tsv") and not _has_header(lines):
        return _from_lines(file, [line.rstrip("\r\n") for line in lines])
    table = read_unit_table(file)
    if not table.unit_column:
        raise UsageError(
            f"{file} is no truth file that is known: none of its columns holds unit numbers"
            f" ({', '.join(table.columns) or 'it is empty'})",
            f"Name that column one of {', '.join(UNIT_COLUMNS)}. {_KNOWN}",
        )
    if not table.lines:
        raise UsageError(f"{file} has no rows", _KNOWN)
    if {"kind", "concept"} <= set(table.columns):
        return _planted(table)
    return _from_rows(table)


def _has_header(lines: Sequence[str]) -> bool:
    """Whether the first line that is no comment names a column of unit numbers beside others."""
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    names = [plain_name(cell.strip().strip('"')) for cell in first.split(max(DELIMITERS, key=first.count))]
    return len(names) > 1 and any(name in UNIT_COLUMNS for name in names)


def _from_lines(file: Path, lines: list[str]) -> tuple[dict[Unit, Truth], str]:
    if looks_like_table(lines):
        raise UsageError(
            f"{file} is a table without a column of unit numbers that is known: its first line is {lines[0]!r}",
            f"Name that column `unit` and the one with the texts `text`. {_KNOWN}",
        )
    begin = next((n for n, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    lines = lines[begin:]
    if what := _no_texts(lines):
        raise UsageError(f"{file} is no truth file that is known: {what}", _KNOWN)
    found = {}
    for number, line in enumerate(lines):
        texts = tuple(text.strip() for text in line.split(_SEPARATOR) if text.strip())
        if texts:
            found[Unit("", number)] = Truth((texts,))
    if not found:
        raise UsageError(f"{file} is empty", "Write the truth of unit i in line i, or a CSV unit,text.")
    after = f" after {begin} of comments" if begin else ""
    return found, f"text, line by line: {len(found)} units, the first line{after} is unit 0"


def _no_texts(lines: Sequence[str]) -> str:
    """Why lines are not one text each, of unit 0 and those that follow; empty where they are."""
    filled = [(number, line.strip()) for number, line in enumerate(lines) if line.strip()]
    if not filled:
        return ""
    first = filled[0][1]
    if first[0] in "{[<" and filled[-1][1][-1] in "}]>":
        return f"it is JSON or markup, {first[:_SHOWN]!r}"
    if first.lower().strip("\"'") in _HEADERS:
        return f"its first line, {first!r}, is a heading, not the truth of unit 0: delete it"
    if any(line.startswith("|") and set(line) <= set("|-: ") for _, line in filled):
        return "it is a Markdown table"
    numbers = [
        re.match(r"(?:(?:unit|neuron|channel|feature)\s*)?#?(\d+)\s*[-:.,;|)=\s]", line, re.I) for _, line in filled
    ]
    if len(filled) > 1 and all(numbers):
        apart = {int(found[1]) - place for found, (place, _) in zip(numbers, filled, strict=True) if found}
        if len(apart) == 1:
            return f"its lines are numbered, {first[:_SHOWN]!r}: write these numbers into a column"
    return ""


def _from_rows(table: UnitTable) -> tuple[dict[Unit, Truth], str]:
    if {"category", "label", "score"} <= set(table.columns):
        raise UsageError(
            f"{table.file} is a label table of Network Dissection, whose units count from 1",
            "Rename its columns to unit,text, with units counted from 0, to take it for a truth.",
        )
    columns = [name for name in _TEXTS if name in table.columns]
    if not columns or (len(columns) > 1 and columns[0] != "text"):
        what = "none of its columns holds texts" if not columns else f"its texts may be in {' or '.join(columns)}"
        raise UsageError(
            f"{table.file} is no truth file that is known: {what} ({', '.join(table.columns)})",
            f"Name that column `text`. {_KNOWN}",
        )
    texts: dict[Unit, list[str]] = {}
    for _, unit, cells in table.units():
        if cells[columns[0]]:
            texts.setdefault(unit, []).append(cells[columns[0]])
    if not texts and "mark" not in table.columns:
        raise UsageError(f"{table.file}: no unit has a text in the column {columns[0]!r}", _KNOWN)
    return {unit: Truth((tuple(those),)) for unit, those in texts.items()}, table.reading(f"texts from {columns[0]!r}")


def _planted(table: UnitTable) -> tuple[dict[Unit, Truth], str]:
    found: dict[Unit, Truth] = {}
    for number, unit, cells in table.units():
        if unit in found:
            raise UsageError(
                f"{table.file}, line {number}: unit {unit.index} again",
                "One row per planted unit; ` | ` joins the meanings of one.",
            )
        meanings = tuple((text.strip(),) for text in cells["concept"].split(_SEPARATOR) if text.strip())
        found[unit] = Truth(meanings, cells["kind"])
    return found, table.reading("planted meanings from 'concept'")
