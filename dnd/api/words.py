"""When two names are one: "Polka-dots" and "a polka dot"."""

from __future__ import annotations

import re

_IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman", "feet": "foot", "teeth": "tooth"}
_IRREGULAR |= {"mice": "mouse", "geese": "goose", "leaves": "leaf", "shelves": "shelf", "knives": "knife"}
_SINGULAR = frozenset({"glasses", "news", "series", "species", "gas", "bus", "lens", "canvas", "christmas", "atlas"})
"""Words that end in s and are no plural, and one whose plural is another thing."""


def base_form(name: str) -> str:
    """In lower case and the singular, without articles and hyphens: "the Polka-dots" -> "polka dot"."""
    words = [word for word in re.findall(r"[^\W_](?:[^\s-]*\w)?", name.lower()) if word not in ("a", "an", "the")]
    return " ".join(map(_singular, words)) or name.lower()


def _singular(word: str) -> str:
    if word in _IRREGULAR or word in _SINGULAR:
        return _IRREGULAR.get(word, word)
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")) else word
