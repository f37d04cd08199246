"""Large arrays in nameless files on disk."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnd.errors import StoreError
from dnd.store.files import how_to_go_on

Floats = npt.NDArray[np.float32]


_COLUMNS_AT_ONCE = 1024


class Scratch:
    """One file for any number of matrices."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError, here and where a matrix is written to, where the disk of `folder` will not have it."""
        self.folder = folder
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._end = 0

    def matrix(self, rows: int, columns: int) -> Matrix:
        """A new one, of zeros."""
        start, self._end = self._end, self._end + 4 * rows * columns
        with _explained(self.folder):
            self._file.truncate(self._end)
        return Matrix(self, start, rows, columns)

    def write(self, data: bytes, place: int) -> None:
        left = memoryview(data)
        with _explained(self.folder):
            while left:  # a disk that fills up takes a part first, and only then says so
                written = os.pwrite(self._file.fileno(), left, place)
                left, place = left[written:], place + written

    def read(self, size: int, place: int) -> bytes:
        with _explained(self.folder):
            return os.pread(self._file.fileno(), size, place)


class Matrix:
    """float32 (rows, columns) on disk: `matrix[7]` is a row, (columns,), and can be set."""

    def __init__(self, scratch: Scratch, start: int, rows: int, columns: int) -> None:
        """See `Scratch.matrix`."""
        self._scratch, self._start, self.shape = scratch, start, (rows, columns)

    def _place(self, row: int, column: int) -> int:
        return self._start + 4 * (row * self.shape[1] + column)

    def __setitem__(self, row: int, values: Floats) -> None:
        self._scratch.write(np.ascontiguousarray(values, "<f4").tobytes(), self._place(row, 0))

    def __getitem__(self, row: int) -> Floats:
        return self.part(row, 0, self.shape[1])

    def part(self, row: int, start: int, stop: int) -> Floats:
        """Columns `start` to `stop` of a row."""
        return np.frombuffer(self._scratch.read(4 * (stop - start), self._place(row, start)), "<f4")

    def rows(self, start: int, stop: int) -> Floats:
        """(stop - start, columns)."""
        whole = self._scratch.read(4 * (stop - start) * self.shape[1], self._place(start, 0))
        return np.frombuffer(whole, "<f4").reshape(stop - start, self.shape[1])

    def turn(self, order: npt.NDArray[np.int64], into: Matrix, first: int) -> None:
        """Write the columns of these rows, in this order, as rows of another matrix, from its row `first` on."""
        for start in range(0, self.shape[1], _COLUMNS_AT_ONCE):
            stop = min(start + _COLUMNS_AT_ONCE, self.shape[1])
            block = np.stack([self.part(int(row), start, stop) for row in order]).T  # (columns, rows)
            into._scratch.write(np.ascontiguousarray(block).tobytes(), into._place(first + start, 0))


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        hint = "Free some space; what is computed is kept, the same command goes on."
        if isinstance(error, OSError):
            hint = how_to_go_on(error)
        raise StoreError(f"cannot write a temporary file in {folder}: {why}", hint) from error
