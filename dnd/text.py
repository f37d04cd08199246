"""Text from outside, for a terminal, a picture or a table."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
"""What steers a terminal, turns the direction of what follows, or no XML may hold; tabs and new lines stay."""


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
