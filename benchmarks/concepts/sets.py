"""The sets of captions with a person's answers, and how candidates are judged by them."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("sets.toml")


@dataclass(frozen=True)
class CaptionSet:
    name: str
    kind: str
    captions: tuple[str, ...]
    answers: tuple[frozenset[str], ...]
    """Accepted names of each meaning, in plain form; none where there is nothing in common."""
    near: frozenset[str]
    """True of the set, but narrower or broader than what it shows."""

    def hits(self, candidates: Sequence[str]) -> float:
        """Share of the meanings that a candidate names."""
        return sum(any(plain(one) in names for one in candidates) for names in self.answers) / len(self.answers)

    def is_near(self, candidates: Sequence[str]) -> bool:
        """Whether a candidate is right, or only narrower or broader."""
        return any(plain(one) in self.near.union(*self.answers) for one in candidates)


def read_sets(file: Path = FILE) -> list[CaptionSet]:
    return [
        CaptionSet(
            name=one["name"],
            kind=one["kind"],
            captions=tuple(one["captions"]),
            answers=tuple(frozenset(map(plain, names)) for names in one["answers"]),
            near=frozenset(map(plain, [*one.get("narrower", ()), *one.get("broader", ())])),
        )
        for one in tomllib.loads(file.read_text("utf-8"))["set"]
    ]


def plain(name: str) -> str:
    """The name in the singular, without hyphens and articles: what is left tells concepts apart."""
    words = [word for word in name.lower().replace("-", " ").split() if word not in ("a", "an", "the")]
    return " ".join(map(_singular, words))


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word
