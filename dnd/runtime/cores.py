"""A machine's cores: how many copies of a network a CPU runs best, and how many threads each gets.

Small networks use several threads badly, and on a busy machine their threads wait for each other: there the default
run's target took 22 CPU seconds for 512 images with two threads, 1.7 as two copies of one thread each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 8
"""Copies of a network at most; with more cores each gets several threads."""


def cores() -> int:
    """Threads that there are: OMP_NUM_THREADS, or the cores that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def over_cores(devices: tuple[str, ...]) -> tuple[str, ...]:
    """A CPU as often as it does best; GPUs as they are."""
    return devices * min(cores(), MOST) if devices == ("cpu",) else devices


@contextmanager
def threads_of_each(copies: int) -> Iterator[None]:
    """Inside, torch has the threads of one of so many copies, in threads of Python that begin inside too."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // copies))
    try:
        yield
    finally:
        torch.set_num_threads(before)
