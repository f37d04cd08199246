"""sha256 of files, remembered by path and state, so that no file is read a second time only to hash it."""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

from dnd.files import files_below, open_regular

_DIGEST = re.compile(r"[0-9a-f]{64}")  # a damaged file of digests may hold anything
_CHUNK = 512
"""Files hashed between two writes to the memory."""
_JUST_NOW = 2.0
"""Seconds: a file changed this lately may change again within its timestamp, so its digest is not remembered."""


def sha256_of(path: Path) -> str:
    """OSError, too, for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, memory: Path | None = None) -> str:
    """sha256 over paths and contents of the files below a folder, hidden ones aside. `memory` as in DigestMemory."""
    paths = sorted((Path(path) for path in files_below(folder)), key=str)
    total = hashlib.sha256()
    with DigestMemory(memory) as digests:
        for start in range(0, len(paths), _CHUNK):
            some = paths[start : start + _CHUNK]
            for path, digest in zip(some, digests.of_all(some), strict=True):
                total.update(os.fsencode(path.relative_to(folder)) + f"\0{digest}\n".encode())
    return total.hexdigest()


class DigestMemory:
    """Digests in a SQLite file. It only saves time: one that cannot be read or written is done without."""

    def __init__(self, file: Path | None, *, again: bool = False) -> None:
        """None: nothing is remembered. With `again` every file is read, and what is found is kept."""
        self._base: sqlite3.Connection | None = None
        self._again = again
        if file is not None:
            with suppress(sqlite3.Error, OSError):
                if file.is_symlink():  # SQLite would write to what it leads to
                    return
                file.parent.mkdir(parents=True, exist_ok=True)
                base = sqlite3.connect(file, timeout=10)
                base.execute("CREATE TABLE IF NOT EXISTS sha256 (path TEXT PRIMARY KEY, state TEXT, digest TEXT)")
                self._base = base

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None

    def of(self, path: Path) -> str:
        """Raises OSError where the file cannot be read."""
        digest = self.of_all([path])[0]
        return sha256_of(path) if digest is None else digest  # None: reading it once more raises the reason

    def of_all(self, paths: Sequence[Path]) -> list[str | None]:
        """In their order, read by several threads; None for a file that cannot be read. Some hundred at a time."""
        names = [os.path.abspath(path) for path in paths]
        known = self._recall(names)
        with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:
            found = list(pool.map(lambda name: _digest(name, known.get(name)), names))
        self._keep([(name, state, digest) for name, (digest, state) in zip(names, found, strict=True) if state])
        return [digest for digest, _ in found]

    def _recall(self, names: Sequence[str]) -> dict[str, tuple[str, str]]:
        query = f"SELECT path, state, digest FROM sha256 WHERE path IN ({','.join('?' * len(names))})"
        with suppress(sqlite3.Error, UnicodeError):
            if self._base is not None and not self._again:
                rows = self._base.execute(query, names)
                return {path: (state, digest) for path, state, digest in rows if _DIGEST.fullmatch(str(digest))}
        return {}

    def _keep(self, rows: Sequence[tuple[str, str, str | None]]) -> None:
        with suppress(sqlite3.Error, UnicodeError):
            if self._base is not None and rows:
                with self._base:
                    self._base.executemany("INSERT OR REPLACE INTO sha256 VALUES (?, ?, ?)", rows)


def _digest(name: str, remembered: tuple[str, str] | None) -> tuple[str | None, str]:
    """A file's digest, None where it cannot be read; and its state, if the digest is new and worth remembering."""
    try:
        status = os.stat(name)  # noqa: PTH116, one file among very many
        state = f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        if remembered is not None and remembered[0] == state:
            return remembered[1], ""
        digest = sha256_of(Path(name))
    except OSError:
        return None, ""
    return digest, state if time.time() - status.st_mtime > _JUST_NOW else ""
