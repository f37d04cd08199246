"""Text from outside, for a terminal, a picture or a table."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
"""What steers a terminal, or no XML may hold; tabs and new lines stay."""


def plain(text: str) -> str:
    """With a mark in the place of each control character."""
    return _CONTROL.sub("\ufffd", text)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV that reads back to the same cells, whatever is in them."""
    text = io.StringIO()
    plainly = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:  # Python before 3.13 leaves a lone carriage return unquoted, and then ends a row at it
        (quoted if any("\r" in str(cell) for cell in row) else plainly).writerow(row)
    return text.getvalue()
