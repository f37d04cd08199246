"""The sets of captions with a person's answers, and how candidates are judged by them."""

from __future__ import annotations

import re
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


def known_words(sets: Sequence[CaptionSet]) -> frozenset[str]:
    """All that stand in the captions and in a person's names for them."""
    texts = {text for one in sets for text in (*one.captions, *one.near.union(*one.answers))}
    words = {word for text in texts for word in re.findall(r"[a-z]+(?!')\b", text.lower().replace("'s", ""))}
    return frozenset(word for word in words if len(word) > 1 or word == "a")


def glued(answers: Sequence[str], known: frozenset[str]) -> list[str]:
    """Words of the answers that are none, but three or more known ones without the spaces: "ofaforest"."""
    several = re.compile(f"(?:{'|'.join(sorted(known, key=len, reverse=True))}){{3,}}")
    words = {word for text in answers for word in re.findall(r"[a-z]+", text.lower())} - known
    return sorted(word for word in words if several.fullmatch(word))


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
