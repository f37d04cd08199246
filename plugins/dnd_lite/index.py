"""Which photos of a folder show a concept, by the ImageNet classes, colours and textures its words name."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dnd.api import ImageFolder, UsageError
from dnd_lite import look
from dnd_lite.classes import N_CLASSES, class_names, words
from dnd_lite.copies import Copies
from dnd_lite.tagger import Recogniser

if TYPE_CHECKING:
    from PIL.Image import Image

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
    """What some photos of a folder show, no two of them alike."""

    photos: ImageFolder
    shown: npt.NDArray[np.int64]
    """(n,) numbers in `photos`."""
    classes: npt.NDArray[np.float32]
    """(n, 1000) probabilities."""
    looks: Mapping[str, npt.NDArray[np.float64]]
    """For each colour and texture word, (n,): the share of the photo that looks so."""

    def matching(self, parts: Sequence[frozenset[int] | str], least: float) -> npt.NDArray[np.int64]:
        """Numbers of the photos that match by `least` or more, best first; none without parts.

        A photo's match is the product over the parts, each 0..1.
        """
        if not parts:
            return np.zeros(0, np.int64)
        match = np.ones(len(self.shown))
        for part in parts:
            match *= self.looks[part] if isinstance(part, str) else self.classes[:, sorted(part)].sum(1)
        best = np.argsort(-match, kind="stable")
        found: npt.NDArray[np.int64] = self.shown[best[match[best] >= least]]
        return found


def build_index(folder: Path, probing: Sequence[Path], recogniser: Recogniser) -> Index:
    """Look once at every photo of the folder that can be read and is no near copy of a photo that is probed with, or of
    an earlier one. Where the folder itself is probed, at the half that is left to the generator."""
    photos, copies = ImageFolder(folder), Copies()
    left = range(len(photos))
    for one in probing:
        probed = ImageFolder(one)
        numbers = range(len(probed))
        if one.resolve() == folder.resolve():
            numbers, left = probed.halves()
        for _, photo in readable(probed, numbers):
            copies.add(photo)
    shown, classes, looks = [], [], []
    for number, photo in readable(photos, left):
        if copies.add(photo):
            shown.append(number)
            classes.append(recogniser.probabilities(photo))
            looks.append(look.measure(photo))
    if not shown:
        raise UsageError(
            f"{folder} has no readable photo that is not probed with",
            "Choose another with --set generator.folder=FOLDER.",
        )
    by_word = {word: np.array([shares[word] for shares in looks]) for word in looks[0]}
    return Index(photos, np.array(shown), np.stack(classes), by_word)


def readable(photos: ImageFolder, numbers: Iterable[int]) -> Iterator[tuple[int, Image]]:
    """(number, photo) of those that can be read; the others are logged."""
    for number in numbers:
        try:
            yield number, photos.open(number)
        except (OSError, ValueError) as error:
            _log.warning("skipped %s: %s", photos.image_name(number), error)


def listing_digest(folders: Iterable[Path]) -> str:
    """Names the content of folders of photos."""
    return hashlib.sha256("".join(ImageFolder(folder).digest() for folder in folders).encode()).hexdigest()[:16]
