"""A choice of units: "0-9,12", "all", "shown", a list of indices."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from dnd.errors import UsageError

SHOWN = "shown"
"""Those that stand for what the probing images show; only some targets know (`dnd.api.Target.shown`)."""


def parse_units(text: str, n: int | None = None) -> list[int]:
    """ "all" or "0-9,12" -> indices, ascending and distinct; checked against `n` units where it is given.

    Without `n` only the form is checked, and "all" and "shown" give an empty list. Raises UsageError.
    """
    if text.strip() == SHOWN and n is None:
        return []
    if text.strip() == "all":
        return list(range(n or 0))
    found: set[int] = set()
    for low, high in unit_ranges(text):
        if n is not None and high >= n:
            hint = f"Choose within 0-{n - 1}, or all."
            raise UsageError(f"there is no unit {high}: the layer has {n}, 0 to {n - 1}", hint)
        found.update(range(low, high + 1) if n is not None else (low,))
    return sorted(found)


def unit_ranges(text: str) -> Iterator[tuple[int, int]]:
    """The first and the last of each part of "0-9,12". Raises UsageError."""
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not (_is_index(first) and (_is_index(last) if dash else not last)):
            raise UsageError(f"{text!r} is not a choice of units", "Write all, shown, or numbers and ranges: 0-9,12.")
        low, high = int(first), int(last or first)
        if low > high:
            raise UsageError(f"{part.strip()!r} runs backwards", f"Write {high}-{low}.")
        yield low, high


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def unit_text(units: object) -> str:
    """A choice of units as text: "0-9,12", a list of integers, or one."""
    if isinstance(units, str):
        return units
    many: Iterable[Any] = units if isinstance(units, Iterable) else [units]
    try:
        numbers = sorted({operator.index(u) for u in many if not isinstance(u, bool)})
    except TypeError:
        numbers = []
    if not numbers or numbers[0] < 0:
        raise UsageError(f"{units!r} is not a choice of units", "Write all, 0-9,12 or a list of indices.")
    return ",".join(map(str, numbers))
