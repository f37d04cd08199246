"""TOML from untrusted files."""

from __future__ import annotations

import re
import tomllib
from typing import Any

_QUOTED = re.compile(r"\"[^\"\n]*\"?|'[^'\n]*'?")
_DEEP = 100
"""Parts of a dotted key at most: tomllib's time grows with their square, a megabyte of `a.a.a...` takes hours."""


def parse_toml(text: str) -> dict[str, Any]:
    """ValueError for whatever is no TOML, or is nested beyond reason."""
    if any(part.count(".") > _DEEP for part in re.split(r"[,\n]", _QUOTED.sub("", text))):
        raise ValueError(f"a key has more than {_DEEP} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
