"""Text from outside, for a terminal, a picture or a table."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dnd.errors import UsageError
from dnd.files import open_regular

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
"""What steers a terminal, or no XML may hold; tabs and new lines stay."""


def plain(text: str) -> str:
    """With a mark in the place of each control character."""
    return _CONTROL.sub("\ufffd", text)


class _Echo:
    """What a csv.writer writes to, so that it gives its lines back."""

    def write(self, text: str) -> str:
        return text


def csv_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Rows as CSV that reads back to the same cells, whatever is in them; one by one."""
    plainly = csv.writer(_Echo(), lineterminator="\n")
    quoted = csv.writer(_Echo(), lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # Python before 3.13 leaves a lone carriage return unquoted, and then ends a row at it
        yield (quoted if any("\r" in str(cell) for cell in row) else plainly).writerow(row)


def suggest(word: str, known: Iterable[str]) -> str:
    """ "Did you mean ...?" and the list of what there is."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listed = f"There are: {', '.join(names)}." if names else "There are none."
    return f"Did you mean {close[0]!r}? {listed}" if close else listed


def read_csv(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of each row; columns in lower case, cells stripped."""
    try:
        with io.TextIOWrapper(open_regular(file), "utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            columns = [column.strip().lower() for column in next(reader, [])]
            lines = []
            for cells in reader:
                if len(cells) > len(columns):
                    raise UsageError(
                        f"{file}, line {reader.line_num}: {len(cells)} cells, but {len(columns)} columns",
                        'Put a text with commas in quotes: "a, b".',
                    )
                if any(cell.strip() for cell in cells):
                    cells += [""] * (len(columns) - len(cells))
                    stripped = (cell.strip() for cell in cells)
                    lines.append((reader.line_num, dict(zip(columns, stripped, strict=True))))
            return lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def whole_number(text: str) -> int:
    """A unit's number; ValueError for anything else."""
    if not re.fullmatch(r"\d+(\.0+)?", text):
        raise ValueError(f"{text!r} is not the number of a unit")
    return int(text.partition(".")[0])
