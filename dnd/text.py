"""Text from outside, for a terminal, a picture or a table."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ufffe\uffff]"
)
"""What steers a terminal, turns the direction of what follows, or no XML may hold; tabs and new lines stay."""


_NO_UTF8 = re.compile("[\ud800-\udfff]")


def plain(text: str) -> str:
    """With a mark in the place of each control character."""
    return _CONTROL.sub("\ufffd", text)


def is_unicode(text: str) -> bool:
    """Not where it has bytes that are no UTF-8, as names of old files have."""
    return not _NO_UTF8.search(text)


def json_text(value: object, indent: int | None = None) -> str:
    """Any JSON-able value as JSON in readable letters, each control character as its code: \\u202e."""
    return escape_json(json.dumps(value, indent=indent, ensure_ascii=False))


def escape_json(text: str) -> str:
    """JSON that reads back to the same value, with the code of each control character in its place."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


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


_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""What a spreadsheet takes for a formula: by its first letter, in the wide form of East Asian input as well. Or such a
text after apostrophes."""
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def spreadsheet_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """`csv_lines` with an apostrophe before what a spreadsheet would compute; `without_guard` takes it off."""
    return csv_lines([_guarded("" if cell is None else str(cell)) for cell in row] for row in rows)


def _guarded(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def without_guard(cell: str) -> str:
    """A cell as it was before `spreadsheet_lines`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def suggest(word: str, known: Iterable[str]) -> str:
    """ "Did you mean ...?" and the list of what there is."""
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listed = f"There are: {', '.join(names)}." if names else "There are none."
    return f"Did you mean {close[0]!r}? {listed}" if close else listed
