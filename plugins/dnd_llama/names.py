"""Concepts that a language model named: singular and plural, hyphen and space, with an article or without, are one."""

from __future__ import annotations

import re
from collections import Counter

_IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman", "feet": "foot", "teeth": "tooth"}
_IRREGULAR |= {"mice": "mouse", "geese": "goose", "leaves": "leaf", "shelves": "shelf", "knives": "knife"}
_SINGULAR = frozenset({"glasses", "news", "series", "species", "gas", "bus", "lens", "canvas", "christmas", "atlas"})
"""Words that end in s and are no plural, and one whose plural is another thing."""


class Names:
    """How often each concept was named."""

    def __init__(self) -> None:
        self._spellings: dict[str, Counter[str]] = {}

    def add(self, concept: str) -> None:
        self._spellings.setdefault(base_form(concept), Counter())[concept] += 1

    def __len__(self) -> int:
        return len(self._spellings)

    def __contains__(self, concept: str) -> bool:
        return base_form(concept) in self._spellings

    def most_common(self) -> list[str]:
        """Each as it was spelled most often, the commonest first; of equals, the earlier one."""
        ordered = sorted(self._spellings.values(), key=lambda spellings: -spellings.total())
        return [spellings.most_common(1)[0][0] for spellings in ordered]


def base_form(concept: str) -> str:
    """In lower case and the singular, without articles and hyphens: "Polka-dots" -> "polka dot"."""
    words = [word for word in re.findall(r"[^\W_](?:[^\s-]*\w)?", concept.lower()) if word not in ("a", "an", "the")]
    return " ".join(map(_singular, words)) or concept.lower()


def accounts_for(concept: str, caption: str) -> bool:
    """Whether the caption has every word of the concept, in the singular or the plural."""
    return set(base_form(concept).split()) <= set(base_form(caption).split())


def _singular(word: str) -> str:
    if word in _IRREGULAR or word in _SINGULAR:
        return _IRREGULAR.get(word, word)
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")) else word
