"""From concepts with a score to a label."""

from __future__ import annotations

from collections.abc import Sequence

from dnd import api

AT_MOST = 3
"""Concepts in a label."""


def label(unit: api.Unit, best: Sequence[tuple[str, float]], least: float | None, what: str) -> api.Label:
    """`labelled`, or uninterpretable where even the best falls short of `least`."""
    if not best:
        return api.Label(unit, "uninterpretable", (), "no candidate concept")
    if least is not None and best[0][1] < least:
        reason = f"{what} is {best[0][1]:.3g} with {best[0][0]!r}, under {least:g}"
        return api.Label(unit, "uninterpretable", tuple(best), reason)
    return api.Label(unit, "labelled", tuple(best))
