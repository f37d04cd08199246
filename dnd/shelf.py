"""Values on disk, found by their key: for what is too much to hold in memory for every unit."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnd.errors import StoreError


class Shelf:
    """A file without a name: it goes when the shelf or the process does, and nobody else can reach it."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError, here and where a value is put in, if the disk will not have it."""
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as error:
            raise _full(folder, error) from error
        self._folder, self._end = folder, 0
        self._places: dict[Hashable, int] = {}

    def __setitem__(self, key: Hashable, value: Any) -> None:
        data = pickle.dumps(value)
        record = len(data).to_bytes(8, "little") + data
        try:
            os.pwrite(self._file.fileno(), record, self._end)
        except OSError as error:
            raise _full(self._folder, error) from error
        self._places[key], self._end = self._end, self._end + len(record)

    def __getitem__(self, key: Hashable) -> Any:
        place, number = self._places[key], self._file.fileno()
        size = int.from_bytes(os.pread(number, 8, place), "little")
        return pickle.loads(os.pread(number, size, place + 8))

    def __contains__(self, key: object) -> bool:
        return key in self._places


class Columns:
    """A float32 matrix on disk, of which single columns are read."""

    def __init__(self, matrix: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], folder: Path) -> None:
        """Of the matrix (n, m), these rows, in this order."""
        self._rows, self._columns = len(rows), matrix.shape[1]
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for start in range(0, self._columns, 1024):
                self._file.write(np.ascontiguousarray(matrix[rows, start : start + 1024].T).tobytes())
            self._file.flush()
        except OSError as error:
            raise _full(folder, error) from error

    def column(self, index: int) -> npt.NDArray[np.float32]:
        """(n,)."""
        size = 4 * self._rows
        return np.frombuffer(os.pread(self._file.fileno(), size, index * size), np.float32)

    def whole(self) -> npt.NDArray[np.float32]:
        """(n, m)."""
        self._file.seek(0)
        return np.fromfile(self._file, np.float32).reshape(self._columns, self._rows).T


def _full(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"cannot write a temporary file in {folder}: {error.strerror or error}",
        "Free some space; what is computed is kept, the same command goes on.",
    )
