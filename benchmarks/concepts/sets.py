"""The sets of captions with a person's answers, and how candidates are judged by them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dnd.api import base_form

FILE = Path(__file__).with_name("sets.toml")


@dataclass(frozen=True)
class CaptionSet:
    name: str
    kind: str
    captions: tuple[str, ...]
    answers: tuple[frozenset[str], ...]
    """Accepted names of each meaning, in base form; none where there is nothing in common."""
    near: frozenset[str]
    """True of the set, but narrower or broader than what it shows."""

    def hits(self, candidates: Sequence[str]) -> float:
        """Share of the meanings that a candidate names."""
        return sum(any(base_form(one) in names for one in candidates) for names in self.answers) / len(self.answers)

    def is_near(self, candidates: Sequence[str]) -> bool:
        """Whether a candidate is right, or only narrower or broader."""
        return any(base_form(one) in self.near.union(*self.answers) for one in candidates)


def read_sets(file: Path = FILE) -> list[CaptionSet]:
    return [
        CaptionSet(
            name=one["name"],
            kind=one["kind"],
            captions=tuple(one["captions"]),
            answers=tuple(frozenset(map(base_form, names)) for names in one["answers"]),
            near=frozenset(map(base_form, [*one.get("narrower", ()), *one.get("broader", ())])),
        )
        for one in tomllib.loads(file.read_text("utf-8"))["set"]
    ]
