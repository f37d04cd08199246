"""An exact quantile of a stream whose length is known beforehand."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


class TopShare:
    """Keeps the largest values of each row of a stream, so many that the value which a share of all reach is known.

    Memory is rows x (2 x share x length) floats at most, whatever the order of the stream.
    """

    def __init__(self, rows: int, length: int, share: float) -> None:
        """`length`: values per row that will come, at most; `share` in 0..1."""
        self._share, self._seen = share, 0
        self._keep = max(1, math.ceil(length * share))
        self._values = np.full((rows, self._keep), -np.inf, np.float32)
        self._waiting: list[npt.NDArray[np.float32]] = []
        self._waits = 0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """values (rows, n)."""
        self._seen += values.shape[1]
        self._waiting.append(values)
        self._waits += values.shape[1]
        if self._waits >= self._keep:
            self._settle()

    def _settle(self) -> None:
        joined = np.concatenate([self._values, *self._waiting], axis=1)
        self._values = np.partition(joined, joined.shape[1] - self._keep, axis=1)[:, -self._keep :]
        self._waiting, self._waits = [], 0

    def threshold(self) -> npt.NDArray[np.float32]:
        """(rows,): the least of the largest `share` of each row's values."""
        self._settle()
        count = min(self._keep, max(1, math.ceil(self._seen * self._share)))
        found: npt.NDArray[np.float32] = np.sort(self._values, axis=1)[:, -count]
        return found
