"""What is too much for memory while a run is under way: files without a name, which go when the process does."""

from __future__ import annotations

import os
import pickle
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnd.errors import DamagedError
from dnd.store.matrix import _explained


class Ledger:
    """The distinct items of a stage, in the order in which they were first asked for, and their answers."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError, here and later, where the disk of `folder` will not have it."""
        self._folder = folder
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(prefix=".ledger-", dir=folder)
            os.close(number)
            # No journal and no end to the transaction: nobody else sees the file, and nobody comes back to it.
            self._file = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
            try:
                self._file.execute("PRAGMA journal_mode = OFF")
                self._file.execute("PRAGMA synchronous = OFF")
                self._file.execute("PRAGMA cache_size = -500")  # KiB: the system has the file's pages at hand
                self._file.execute("BEGIN")
                self._file.execute(
                    "CREATE TABLE ledger (place INTEGER PRIMARY KEY, key TEXT UNIQUE, item BLOB, answer BLOB)"
                )
            finally:
                Path(name).unlink()
        weakref.finalize(self, self._file.close)
        self._size = 0
        self._answered = 0

    def add(self, key: str, item: object = None) -> bool:
        """Ask for an item; False where it was asked for before, which is then what counts."""
        data = pickle.dumps(item)
        added = self._change("INSERT OR IGNORE INTO ledger (key, item) VALUES (?, ?)", key, data)
        self._size += added
        return added == 1

    def settle(self, key: str, answer: object) -> None:
        """Note the answer to an item that was asked for and has none."""
        data = pickle.dumps(answer)
        self._answered += self._change("UPDATE ledger SET answer = ? WHERE key = ? AND answer IS NULL", data, key)

    def __len__(self) -> int:
        """Items asked for."""
        return self._size

    @property
    def left(self) -> int:
        """Items without an answer."""
        return self._size - self._answered

    def lacks(self, key: str) -> bool:
        """Whether it was asked for and has no answer."""
        return bool(self._rows("SELECT 1 FROM ledger WHERE key = ? AND answer IS NULL", key))

    def __contains__(self, key: object) -> bool:
        """Whether it was asked for."""
        return bool(self._rows("SELECT 1 FROM ledger WHERE key = ?", key))

    def item(self, key: str) -> Any:
        """What was asked for under a key."""
        return pickle.loads(self._rows("SELECT item FROM ledger WHERE key = ?", key)[0][0])

    def get(self, key: str) -> Any:
        """An item's answer; None where there is none."""
        found = self._rows("SELECT answer FROM ledger WHERE key = ? AND answer IS NOT NULL", key)
        return pickle.loads(found[0][0]) if found else None

    def __getitem__(self, key: str) -> Any:
        """An item's answer."""
        found = self._rows("SELECT answer FROM ledger WHERE key = ? AND answer IS NOT NULL", key)
        if not found:
            raise DamagedError(f"what was stored of {key!r} is gone", "Give the same command again: the rest is kept.")
        return pickle.loads(found[0][0])

    def __iter__(self) -> Iterator[str]:
        """The keys, in order."""
        for page in self._pages("1", 1024):
            yield from (key for _, key, _ in page)

    def batches(self, n: int) -> Iterator[list[tuple[str, Any]]]:
        """(key, item) of those without an answer, in order, n at a time, each once."""
        for page in self._pages("answer IS NULL", n):
            yield [(key, pickle.loads(item)) for _, key, item in page]

    def _pages(self, which: str, n: int) -> Iterator[list[tuple[int, str, bytes]]]:
        place = 0
        query = f"SELECT place, key, item FROM ledger WHERE place > ? AND {which} ORDER BY place LIMIT ?"
        while page := self._rows(query, place, n):
            yield page
            place = page[-1][0]

    def _rows(self, query: str, *values: object) -> list[Any]:
        with _explained(self._folder):  # to read may write, too: what the cache cannot hold any more
            return self._file.execute(query, values).fetchall()

    def _change(self, statement: str, *values: object) -> int:
        """Rows that were changed."""
        with _explained(self._folder):
            return self._file.execute(statement, values).rowcount
