"""Which images a pass has met, for passes over millions of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Names = npt.NDArray[np.uint64]
_LATEST = 65_536
"""So many are in a set before they join the array; in a set each takes 70 bytes."""


class Seen:
    """Distinct 64-bit names, 8 bytes each."""

    def __init__(self, names: Names | None = None) -> None:
        """With some, in any order."""
        self._sorted: Names = np.unique(np.zeros(0, np.uint64) if names is None else names)
        self._latest: set[int] = set()

    def add(self, name: int) -> bool:
        """Note a name; False for one that was there."""
        place = int(np.searchsorted(self._sorted, np.uint64(name)))
        if name in self._latest or (place < len(self._sorted) and int(self._sorted[place]) == name):
            return False
        self._latest.add(name)
        if len(self._latest) >= _LATEST:
            self.array()
        return True

    def array(self) -> Names:
        """All of them, in ascending order."""
        if self._latest:
            self._sorted = np.concatenate([self._sorted, np.fromiter(self._latest, np.uint64)])
            self._sorted.sort()
            self._latest = set()
        return self._sorted
