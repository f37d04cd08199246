"""Truth files: what units are known to mean.

* Text: line i is the truth of unit i (from 0); synonyms are joined by ` | `; an empty line is a unit without truth.
* CSV or TSV with a column of unit numbers (`unit`, `neuron`, `index`, `Neuron ID`, ...) and one of texts (`text`,
  `label`, `description`, `concept` or `summary`), optionally `layer`: several rows of a unit are synonyms, or several
  annotators.
* CSV or TSV `unit,kind,concept`, optionally `layer`: planted units. Here ` | ` joins *different* meanings of one unit,
  and a label has to give all of them; an empty concept means that the unit has no meaning and no label is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnd.api.records import Unit
from dnd.api.unit_table import UNIT_COLUMNS, UnitTable, looks_like_table, plain_name, read_lines, read_unit_table
from dnd.errors import UsageError

_SEPARATOR = " | "
_TEXTS = ("text", "label", "description", "concept", "summary")
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
    names = [plain_name(cell.strip().strip('"')) for cell in first.split(max(",;\t", key=first.count))]
    return len(names) > 1 and any(name in UNIT_COLUMNS for name in names)


def _from_lines(file: Path, lines: list[str]) -> tuple[dict[Unit, Truth], str]:
    if looks_like_table(lines):
        raise UsageError(
            f"{file} is a table without a column of unit numbers that is known: its first line is {lines[0]!r}",
            f"Name that column `unit` and the one with the texts `text`. {_KNOWN}",
        )
    found = {}
    for number, line in enumerate(lines):
        texts = tuple(text.strip() for text in line.split(_SEPARATOR) if text.strip())
        if texts:
            found[Unit("", number)] = Truth((texts,))
    if not found:
        raise UsageError(f"{file} is empty", "Write the truth of unit i in line i, or a CSV unit,text.")
    return found, f"text, line by line: {len(found)} units, the first line is unit 0"


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
