"""Text from outside, for a terminal or a picture."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
"""What steers a terminal, or no XML may hold; tabs and new lines stay."""


def plain(text: str) -> str:
    """With a mark in the place of each control character."""
    return _CONTROL.sub("\ufffd", text)
