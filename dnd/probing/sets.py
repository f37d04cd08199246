"""Probing sets: folders of images, and several sets as one."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dnd.api import ImageFolder, ProbingSet, file_digest

if TYPE_CHECKING:
    from PIL.Image import Image

_CHUNK = 512
"""Files hashed between two writes to the memory."""
_JUST_NOW = 2.0
"""Seconds: a file changed this lately may change again within its timestamp, so its digest is not remembered."""


class FolderSet(ImageFolder):
    """A folder of images whose digests are remembered."""

    hint = "Give --probe a folder of images: JPEG, PNG, WebP, ..."

    def __init__(self, folder: Path, memory: Path | None = None) -> None:
        """`memory` is a file where digests are kept by (path, size, time of change), so that a second run reads
        no image only to hash it. Raises UsageError for a folder that is missing or has no images."""
        super().__init__(folder)
        self.memory = memory

    def contents(self) -> Iterator[bytes]:
        with _Memory(self.memory) as memory, ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
            for start in range(0, len(self.paths), _CHUNK):
                full = [f"{os.path.abspath(self.folder)}/{path}" for path in self.paths[start : start + _CHUNK]]
                known = memory.recall(full)
                digests = list(pool.map(lambda path: _file_digest(Path(path), known.get(path)), full))  # noqa: B023
                memory.keep({p: (stamp, content) for p, (content, stamp) in zip(full, digests, strict=True) if stamp})
                yield from (content for content, _ in digests)


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


_Stamp = tuple[int, int]
"""Size and mtime_ns."""


def _file_digest(path: Path, remembered: tuple[_Stamp, bytes] | None) -> tuple[bytes, _Stamp | None]:
    """sha256 of a file, and its stamp if the digest is new and worth remembering."""
    try:
        status = path.stat()
    except OSError:
        return b"unreadable", None
    stamp = (status.st_size, status.st_mtime_ns)
    if remembered is not None and remembered[0] == stamp:
        return remembered[1], None
    content = file_digest(path)
    lasting = content != b"unreadable" and time.time() - status.st_mtime > _JUST_NOW
    return content, stamp if lasting else None


class _Memory:
    """Digests of files seen before, in a SQLite file. It only saves time: one that does not work is done without."""

    def __init__(self, file: Path | None) -> None:
        self._base: sqlite3.Connection | None = None
        if file is not None:
            with suppress(sqlite3.Error, OSError):
                file.parent.mkdir(parents=True, exist_ok=True)
                base = sqlite3.connect(file, timeout=10)
                base.execute(
                    "CREATE TABLE IF NOT EXISTS digest (path TEXT PRIMARY KEY, size INT, mtime_ns INT, sha256 BLOB)"
                )
                self._base = base

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._base is not None:
            self._base.close()

    def recall(self, paths: Sequence[str]) -> dict[str, tuple[_Stamp, bytes]]:
        """What is known of these files."""
        query = f"SELECT * FROM digest WHERE path IN ({','.join('?' * len(paths))})"
        with suppress(sqlite3.Error, UnicodeError):
            if self._base is not None:
                rows = self._base.execute(query, paths).fetchall()
                return {path: ((size, changed), content) for path, size, changed, content in rows}
        return {}

    def keep(self, found: Mapping[str, tuple[_Stamp, bytes]]) -> None:
        rows = [(path, *stamp, content) for path, (stamp, content) in found.items()]
        with suppress(sqlite3.Error, UnicodeError):
            if self._base is not None and rows:
                with self._base:
                    self._base.executemany("INSERT OR REPLACE INTO digest VALUES (?, ?, ?, ?)", rows)
