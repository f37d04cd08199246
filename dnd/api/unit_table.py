"""A CSV or TSV with one row per unit, as spreadsheets and other tools write it."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dnd.api.records import Unit
from dnd.errors import UsageError
from dnd.files import open_regular
from dnd.text import without_guard

UNIT_COLUMNS = (
    *("unit", "neuron", "index"),
    *(f"{thing} {number}" for thing in ("unit", "neuron") for number in ("id", "index", "idx", "number")),
    *("feature", "feature id", "feature index"),
)
"""Names of the column with a unit's number, the first one that a table has; `_` and `-` count as spaces."""
DELIMITERS = ",;\t|"
_DELIMITED = {",": "CSV", ";": "CSV with semicolons", "\t": "TSV", "|": "CSV with bars"}

_IS_ASIDE = re.compile(r'#|"?sep=.?"?\s*$')


@dataclass(frozen=True)
class UnitTable:
    """Its rows, as text."""

    file: Path
    delimiter: str
    columns: tuple[str, ...]
    """In lower case, spaces in place of `_` and `-`."""
    unit_column: str
    """The one with the unit's number; empty where there is none."""
    lines: tuple[tuple[int, Mapping[str, str]], ...]
    """(line number, cells by column), cells stripped and without a spreadsheet's guard (`dnd.text.without_guard`)."""

    def units(self) -> Iterator[tuple[int, Unit, Mapping[str, str]]]:
        """(line number, unit, cells by column) of each row; UsageError for what is no unit's number."""
        for number, cells in self.lines:
            try:
                index = whole_number(cells[self.unit_column])
            except ValueError as error:
                raise UsageError(f"{self.file}, line {number}: {error}") from error
            yield number, Unit(cells.get("layer", ""), index), cells

    def reading(self, text: str) -> str:
        """How it was read, for the user: `text` says where the texts are from."""
        kind = _DELIMITED[self.delimiter]
        layer = ", layers from 'layer'" if "layer" in self.columns else ""
        return f"{kind}, {len(self.lines)} rows, units from {self.unit_column!r}{layer}, {text}"


def read_unit_table(file: Path) -> UnitTable:
    """Comma, semicolon, tab or bar, whichever the first line has most of; lines before it that begin with # are
    comments, and `sep=;` is Excel's.

    UsageError for an unclosed quote, a column named twice, and more cells than columns.
    """
    lines = read_lines(file)
    skipped = next((i for i, line in enumerate(lines) if line.strip() and not _IS_ASIDE.match(line)), len(lines))
    lines = lines[skipped:]
    delimiter = max(DELIMITERS, key=lines[0].count) if lines else ","
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = tuple(plain_name(column) for column in next(reader, []))
        twice = [column for column, count in Counter(columns).items() if column and count > 1]
        if twice:
            raise UsageError(f"{file} has several columns {twice[0]!r}", "Rename or delete all but one of them.")
        unit_column = next((name for name in UNIT_COLUMNS if name in columns), "")
        rows, start = [], 1
        for cells in reader:
            number = skipped + reader.line_num
            if len(cells) > len(columns):
                raise UsageError(
                    f"{file}, line {number}: {len(cells)} cells, but {len(columns)} columns",
                    f'Put a text with {"tabs" if delimiter == chr(9) else delimiter} in quotes: "a{delimiter} b".',
                )
            if reader.line_num - start > 1 and _swallows_rows(cells, columns, unit_column, delimiter):
                raise UsageError(f"{file}, line {skipped + start + 1}: a quote is not closed", 'Write " as "".')
            start = reader.line_num
            if any(cell.strip() for cell in cells):
                cells += [""] * (len(columns) - len(cells))
                texts = (without_guard(cell.strip()).strip() for cell in cells)
                rows.append((number, dict(zip(columns, texts, strict=True))))
    except csv.Error as error:
        what = "a quote is not closed" if "unexpected end" in str(error) else str(error)
        raise UsageError(f"cannot read {file}, line {skipped + reader.line_num}: {what}", 'Write " as "".') from error
    return UnitTable(file, delimiter, columns, unit_column, tuple(rows))


def read_lines(file: Path) -> list[str]:
    """Lines with their ends, of UTF-8, or of UTF-16 with its mark; UsageError for what is no text."""
    try:
        with open_regular(file) as opened:
            data = opened.read()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    if "\0" in text:
        raise UsageError(f"cannot read {file}: it is no text", "Save it as text or CSV, in UTF-8.")
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)


def looks_like_table(lines: list[str]) -> bool:
    """Whether all lines but the first, which may be a header, have a whole number in the same column of several.

    At least two rows are needed: a single line `7, lucky number` may well be a text.
    """
    for delimiter in DELIMITERS:
        try:
            rows = [row for row in csv.reader(lines, delimiter=delimiter) if any(cell.strip() for cell in row)]
        except csv.Error:
            continue
        body = rows[1:]
        if len(body) > 1 and min(map(len, rows)) > 1:
            columns = range(min(map(len, rows)))
            if any(all(re.fullmatch(r"\s*\d+\s*", row[column]) for row in body) for column in columns):
                return True
    return False


def whole_number(text: str) -> int:
    """A unit's number; ValueError for anything else."""
    if not re.fullmatch(r"[0-9]+(\.0+)?", text):
        raise ValueError(f"{text!r} is not the number of a unit")
    return int(text.partition(".")[0])


def plain_name(column: str) -> str:
    """A column's name in lower case, with spaces in place of `_` and `-`."""
    return re.sub(r"[\s_-]+", " ", column).strip().lower()


def _swallows_rows(cells: list[str], columns: tuple[str, ...], unit_column: str, delimiter: str) -> bool:
    """Whether a cell holds lines that are rows themselves: its quote was closed by that of a later row."""
    if unit_column not in columns:
        return False
    place = columns.index(unit_column)
    for line in (line for cell in cells for line in cell.splitlines()[1:]):
        inside = line.split(delimiter)
        if len(inside) >= len(columns) and re.fullmatch(r"\s*[0-9]+\s*", inside[place]):
            return True
    return False
