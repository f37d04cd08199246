"""Truth files: what units are known to mean.

* Text: line i is the truth of unit i (from 0); synonyms are joined by ` | `; an empty line is a unit without truth.
* CSV `unit,text`, optionally `layer`: several rows of a unit are synonyms, or several annotators.
* CSV `unit,kind,concept`, optionally `layer`: planted units. Here ` | ` joins *different* meanings of one unit, and
  a label has to give all of them; an empty concept means that the unit has no meaning and no label is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnd.api.records import Unit
from dnd.errors import UsageError
from dnd.files import read_text
from dnd.text import read_csv, whole_number

_SEPARATOR = " | "


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
    try:
        lines = read_text(file, "utf-8-sig").splitlines()
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
