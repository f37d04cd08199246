"""Concepts that a language model named: singular and plural, hyphen and space, with an article or without, are one."""

from __future__ import annotations

from collections import Counter

from dnd.api import base_form


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


def accounts_for(concept: str, caption: str) -> bool:
    """Whether the caption has every word of the concept, in the singular or the plural."""
    return set(base_form(concept).split()) <= set(base_form(caption).split())
