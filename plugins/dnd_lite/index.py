"""Which photos of a folder show a concept, by the ImageNet classes, colours and textures its words name."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnd.api import ImageFolder, UsageError
from dnd_lite import look
from dnd_lite.classes import N_CLASSES, class_names, words
from dnd_lite.tagger import Recogniser

_log = logging.getLogger(__name__)


class Vocabulary:
    """What the words of a concept stand for: sets of ImageNet classes, colours, textures."""

    def __init__(self) -> None:
        self._by_name: dict[tuple[str, ...], set[int]] = {}
        self._by_word: dict[str, set[int]] = {}
        for index in range(N_CLASSES):
            for name in map(words, class_names(index)):
                self._by_name.setdefault(name, set()).add(index)
                for word in name:
                    self._by_word.setdefault(word, set()).add(index)

    def parts(self, concept: str) -> list[frozenset[int] | str]:
        """Sets of classes and look words, from left to right, the longest names first; unknown words drop out."""
        tokens = words(concept)
        if whole := self._by_name.get(tokens):  # "orange" alone is the fruit
            return [frozenset(whole)]
        found, at = [], 0
        while at < len(tokens):
            part, length = self._part(tokens[at:])
            if part is not None:
                found.append(part)
            at += length
        return found

    def _part(self, tokens: tuple[str, ...]) -> tuple[frozenset[int] | str | None, int]:
        """What the first words stand for, and how many they are."""
        for length in range(len(tokens), 1, -1):
            if classes := self._by_name.get(tokens[:length]):  # "red fox" before "red"
                return frozenset(classes), length
        if tokens[0] in look.COLOURS or tokens[0] in look.TEXTURES:
            return tokens[0], 1
        classes = self._by_name.get(tokens[:1]) or self._by_word.get(tokens[0])
        return (frozenset(classes) if classes else None), 1


@dataclass(frozen=True)
class Index:
    """What each photo of a folder shows."""

    photos: ImageFolder
    readable: npt.NDArray[np.int64]
    """(n,) numbers in `photos`."""
    classes: npt.NDArray[np.float32]
    """(n, 1000) probabilities."""
    looks: Mapping[str, npt.NDArray[np.float64]]
    """For each colour and texture word, (n,): the share of the photo that looks so."""

    def nearest(self, parts: Sequence[frozenset[int] | str], most: int) -> npt.NDArray[np.int64]:
        """Numbers of the photos that match all parts at least half as well as the best one, best first.

        A photo's match is the product over the parts, each 0..1. Without parts every photo matches.
        """
        if not parts:
            return self.readable
        match = np.ones(len(self.readable))
        for part in parts:
            match *= self.looks[part] if isinstance(part, str) else self.classes[:, sorted(part)].sum(1)
        best = np.argsort(-match, kind="stable")[:most]
        found: npt.NDArray[np.int64] = self.readable[best[match[best] >= match[best[0]] / 2]]
        return found


def build_index(folder: Path, recogniser: Recogniser) -> Index:
    """Look once at every photo that can be read."""
    photos = ImageFolder(folder)
    readable, classes, looks = [], [], []
    for number in range(len(photos)):
        try:
            photo = photos.open(number)
        except (OSError, ValueError) as error:
            _log.warning("skipped %s: %s", photos.image_name(number), error)
            continue
        readable.append(number)
        classes.append(recogniser.probabilities(photo))
        looks.append(look.measure(photo))
    if not readable:
        raise UsageError(f"no photo in {folder} can be read", "Choose another with --set generator.folder=FOLDER.")
    by_word = {word: np.array([shares[word] for shares in looks]) for word in looks[0]}
    return Index(photos, np.array(readable), np.stack(classes), by_word)


def listing_digest(folder: Path) -> str:
    """Names the content of a folder by the relative paths and sizes of its photos, which are not read."""
    photos = ImageFolder(folder)
    names = [photos.image_name(number) for number in range(len(photos))]
    lines = [f"{name}\0{(folder / name).stat().st_size}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
