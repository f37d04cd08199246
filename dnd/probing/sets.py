"""Probing sets: folders of images, and several sets as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from dnd.api import ImageFolder, ProbingSet
from dnd.errors import UsageError
from dnd.probing.remember import RememberedSet
from dnd.store.digests import DigestMemory
from dnd.store.keys import digest_of
from dnd.store.source import source_digest

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK = 512
"""Files hashed between two writes to the memory."""


class FolderSet(ImageFolder):
    """A folder of images whose digests are remembered."""

    hint = "Give --probe a folder of images (JPEG, PNG, WebP, ...), of WebDataset shards or of Parquet or Arrow files."

    def __init__(self, folder: Path, memory: Path | None = None, *, half: bool = False) -> None:
        """`memory` is a file where digests are kept (`dnd.store.digests`), so that a second run reads
        no image only to hash it. With `half` it is the probing half of the folder (`halves`). Raises UsageError for a
        folder that is missing or has no images."""
        super().__init__(folder)
        self.memory = memory
        if half:
            self.paths = [self.paths[index] for index in self.halves()[0]]
        if not self.paths:
            raise UsageError(
                f"all images of {folder} are left to the generator, which shows those of that folder",
                "Add images, or give the generator others: --set generator.folder=OTHER.",
            )

    def digests_of(self, paths: Sequence[str]) -> Iterator[bytes]:
        with DigestMemory(self.memory) as memory:
            for start in range(0, len(paths), _CHUNK):
                found = memory.of_all([self.folder / path for path in paths[start : start + _CHUNK]])
                yield from (b"unreadable" if digest is None else bytes.fromhex(digest) for digest in found)


def content_of(probing: ProbingSet) -> str:
    """Names what is seen of a probing set: its digest, and the code of the plugins that open its images."""
    return digest_of([probing.digest(), *code_of(probing)])


def code_of(probing: ProbingSet) -> list[str]:
    """Digests of that code, which is no part of a set's own digest."""
    if isinstance(probing, RememberedSet):
        probing = probing.probing
    parts = list(probing.sets.values()) if isinstance(probing, UnionSet) else [probing]
    return [source_digest(type(part)) for part in parts]


class UnionSet(ProbingSet):
    """Several sets one after the other; each image's name starts with its set's name or its folder's."""

    name = "union"

    def __init__(self, sets: Iterable[ProbingSet]) -> None:
        self.sets: dict[str, ProbingSet] = {}
        for part in sets:
            label = first = part.folder.resolve().name if isinstance(part, ImageFolder) else part.name
            again = 1
            while label in self.sets:
                again += 1
                label = f"{first}-{again}"
            self.sets[label] = part
        self._ends = list(accumulate(len(part) for part in self.sets.values()))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _at(self, index: int) -> tuple[str, ProbingSet, int]:
        for (label, part), end in zip(self.sets.items(), self._ends, strict=True):
            if index < end:
                return label, part, index - end + len(part)
        raise IndexError(index)

    def image_name(self, index: int) -> str:
        label, part, own = self._at(index)
        return f"{label}/{part.image_name(own)}"

    def open(self, index: int) -> Image:
        _, part, own = self._at(index)
        return part.open(own)

    def label(self, index: int) -> str | None:
        _, part, own = self._at(index)
        return part.label(own)

    def digest(self) -> str:
        parts = (f"{label}\0{len(part)}\0{part.digest()}\n" for label, part in self.sets.items())
        return hashlib.sha256("".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
