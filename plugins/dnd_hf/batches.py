"""Items in batches of a size that follows the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from dnd_hf import fitting

T = TypeVar("T")
R = TypeVar("R")


class Batches:
    """Batches of at most `size` items; half as many from then on where the device's memory runs out."""

    def __init__(self, size: int, device: str, *, fill: bool = False) -> None:
        """With `fill`, a batch with too few items is filled up by repeating its last: arithmetic rounds differently at
        another shape."""
        self.size = size
        self._device = device
        self._fill = fill

    def map(self, work: Callable[[list[T]], Iterable[R]], items: Sequence[T]) -> list[R]:
        """What `work` gives for each item, in order. Raises RuntimeError if not even one item fits."""
        found: list[R] = []
        while len(found) < len(items):
            batch = list(items[len(found) : len(found) + self.size])
            count = len(batch)
            if self._fill:
                batch += batch[-1:] * (self.size - count)
            if (answers := self._try(work, batch)) is not None:
                found.extend(answers[:count])
        return found

    def _try(self, work: Callable[[list[T]], Iterable[R]], batch: list[T]) -> list[R] | None:
        """None after the device's memory ran out."""
        try:
            return list(work(batch))
        except RuntimeError as error:
            if len(batch) == 1 or not fitting.is_out_of_memory(error):
                raise
        # Past the handler, so that the traceback no longer holds the failed batch's tensors.
        self.size = len(batch) // 2
        fitting.release(self._device)
        return None
