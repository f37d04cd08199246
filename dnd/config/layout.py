"""The words of `target.layout`: what each axis of a layer's output holds.

    batch units height width      a convolution
    batch tokens units            a transformer; `tokens batch units` where the sequence comes first
    (batch other) tokens units    windows: an axis that holds several rows of each image

`other` axes are pooled over: heads, windows, frames.
"""

from __future__ import annotations

import re

from dnd.errors import UsageError

Axes = tuple[tuple[str, ...], ...]
"""For each axis of an output what it holds: one word, or two for a batch that is folded with something else."""

WORDS = ("batch", "units", "height", "width", "tokens", "other")
_EXAMPLES = 'Name its axes in order: "batch units height width", "tokens batch units" or "(batch other) tokens units".'


def parse_layout(text: str) -> Axes:
    """ "(batch other) tokens units" -> (("batch", "other"), ("tokens",), ("units",)). Raises UsageError."""
    parts = re.findall(r"\([^()]*\)|[^\s()]+|[()]", text)
    axes = tuple(tuple(part.strip("()").split()) for part in parts)
    words = [word for axis in axes for word in axis]
    unknown = [word for word in words if word not in WORDS] or [part for part in parts if part in ("(", ")", "()")]
    if unknown:
        raise UsageError(f"{text!r}: no axis is called {unknown[0]!r}", f"There are {', '.join(WORDS)}. {_EXAMPLES}")
    wrong = _fault(axes, words)
    if wrong:
        raise UsageError(f"{text!r}: {wrong}", _EXAMPLES)
    return axes


def _fault(axes: Axes, words: list[str]) -> str:
    for word in ("batch", "units"):
        if words.count(word) != 1:
            return f"one axis is to be {word}"
    if any(len(axis) > 2 or (len(axis) == 2 and set(axis) != {"batch", "other"}) for axis in axes):
        return "only batch and other can share an axis"
    if any(words.count(word) > 1 for word in ("height", "width", "tokens")):
        return "height, width and tokens are named once at most"
    if ("height" in words) != ("width" in words) or ("tokens" in words and "height" in words):
        return "a map has height and width, or tokens"
    return ""
