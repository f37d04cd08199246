"""A backend on a CPU, in this process and, where there is enough to do, in worker processes beside it."""

from __future__ import annotations

import logging
import queue
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from dnd.api import Backend
from dnd.runtime.cores import cores, threads_of_each
from dnd.runtime.devices import reason_of
from dnd.runtime.ends import Ends
from dnd.runtime.pool import DEEP, WorkerPool
from dnd.runtime.worker import Worker

WORTH = 15.0
"""Seconds of work left for which workers, which take some seconds to start, are worth their start."""
_LOG = logging.getLogger(__name__)


class _Here:
    """Asked like a worker."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        answers: list[Any] = getattr(self._backend, method)(items)
        return answers


class Spread(WorkerPool):
    """Stands for a backend: the same answers from several of it, of few threads each.

    Small models use several threads badly (dnd/runtime/cores.py). The first batch is worked on here; how long it took
    says whether workers are worth their start, and work goes on here while they start.
    """

    def __init__(self, backend: Backend, copies: int, ends: Ends | None = None, *, workers: bool = True) -> None:
        """`copies` of it share the cores. Without `workers` there is but the one here, with the threads of one."""
        devices, threads = ("cpu",) * (copies - 1) if workers else (), max(1, cores() // copies)
        super().__init__(backend, devices, ends=ends, threads=threads)
        self._copies = copies
        self.left = 0
        """Items without an answer, as the caller says before each batch."""

    def load(self) -> None:
        self.close()
        with ExitStack() as undo:
            undo.enter_context(threads_of_each(self._copies))
            undo.callback(self._backend.close)
            self._backend.load()
            self._part = self.batch_size = self._backend.batch_size
            self._threads = ThreadPoolExecutor(self._copies)
            self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._idle.put(_Here(self._backend))
            self._at_work, self._started = 1, False
            self._undo = undo.pop_all()

    def close(self) -> None:
        super().close()
        for worker in self._workers:
            worker.kill()  # one that began to start just then
        if undo := vars(self).pop("_undo", None):
            undo.close()

    def chosen(self) -> Mapping[str, Any]:
        return self._backend.chosen()

    def used(self) -> Mapping[str, int]:
        return Counter(super().used()) + Counter(self._backend.used())

    def _ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        began = time.perf_counter()
        answers = super()._ask(method, items)
        each = (time.perf_counter() - began) / max(len(items), 1)
        if not self._started and (self.left - len(items)) * each > WORTH:
            self._started = True
            for worker in self._workers:
                self._threads.submit(self._join, worker)
        return answers

    def _join(self, worker: Worker) -> None:
        """Start a worker and let it take part."""
        try:
            worker.load()
        except Exception as error:  # the work goes on without it
            _LOG.info("no worker beside this process for %s: %s", self.name, reason_of(error))
            return
        with self._counting:
            self._at_work += 1
            self.batch_size = DEEP * self._part * self._at_work
        self._idle.put(worker)
