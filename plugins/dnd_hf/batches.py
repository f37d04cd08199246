"""Items in batches of a size that follows the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from dnd_hf import devices

T = TypeVar("T")
R = TypeVar("R")

SHARE = 0.85
"""So much of the free memory a batch may take: the allocator leaves gaps."""


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
            if len(batch) == 1 or not devices.is_out_of_memory(error):
                raise
        # Past the handler, so that the traceback no longer holds the failed batch's tensors.
        self.size = len(batch) // 2
        devices.release(self._device)
        return None


def batch_limit(setting: int | str, automatic: Mapping[str, int], device: str) -> int:
    """The setting, or how many "auto" begins with on this kind of device."""
    return setting if isinstance(setting, int) else automatic["cuda" if device.startswith("cuda") else "cpu"]


def largest_batch(trial: Callable[[int], object], limit: int, device: str) -> int:
    """The largest power of two up to `limit` that fits a GPU, found by trying; `limit` on a CPU.

    `trial` works on so many items. Batches of one and two say what an item takes; the size that follows is
    tried itself, and halved while memory runs out.
    """
    if devices.free_memory(device) is None or limit == 1:
        return limit
    trial(1)  # libraries take workspace at their first use
    one, two = _peak(device, trial, 1), _peak(device, trial, 2)
    each = max(two - one, 1)
    room = SHARE * (devices.free_memory(device) or 0) - (one - each)
    size = min(limit, max(1, int(room // each)))
    size = 1 << (size.bit_length() - 1)
    while size > 2 and _runs_out(trial, size):
        devices.release(device)
        size //= 2
    return size


def _peak(device: str, trial: Callable[[int], object], size: int) -> int:
    """Bytes that a trial takes at most, beside what is there before."""
    import torch

    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trial(size)
    return torch.cuda.max_memory_allocated(device) - before


def _runs_out(trial: Callable[[int], object], size: int) -> bool:
    try:
        trial(size)
    except RuntimeError as error:
        if not devices.is_out_of_memory(error):
            raise
        return True
    return False
