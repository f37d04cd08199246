"""A backend's work spread over devices, one worker process each."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dnd.api import Backend, Bound, Evidence, ImageRequest, SummaryRequest
from dnd.errors import DeviceError, PluginError
from dnd.runtime.ends import Ends, NoRoomError, Processes, WorkerSpec
from dnd.runtime.worker import NO_ROOM, Worker

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image


DEEP = 2
"""Parts of a batch for each worker: none waits for the slowest of them after each part."""


class WorkerPool(Backend):
    """Stands for a backend: the same methods and answers, from as many of it as there are devices.

    A batch is dealt in the parts in which a single backend would have got it, so that answers do not depend on how
    many share the work.
    """

    def __init__(
        self,
        backend: Backend,
        devices: Sequence[str],
        timeout: float | None = None,
        ends: Ends | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        """`backend` is never loaded, the workers' own are. `timeout`: seconds for what a single one gets at once.
        `ends` gives the workers their processes; by default each starts one and ends it. `threads` of each worker; by
        default its libraries choose."""
        super().__init__(backend.config, backend.runtime)
        self.name = backend.name  # type: ignore[misc]
        self._backend = backend
        alone, kind, config = len(devices) == 1, type(backend), backend.config
        ends = ends or Processes(keeps=False)
        self._workers = [
            Worker(WorkerSpec(kind, config, one, backend.runtime.devices if alone else (one,), timeout, threads), ends)
            for one in devices
        ]
        self._part = 1
        self._at_work = 0
        self._counting = threading.Lock()

    def load(self) -> None:
        self.close()
        self._threads = ThreadPoolExecutor(len(self._workers))
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        try:
            sizes = list(self._threads.map(_load, self._workers))
            at_work = [(worker, size) for worker, size in zip(self._workers, sizes, strict=True) if size is not None]
            if not at_work:
                raise DeviceError(f"there is no room for a worker with {self.name}", NO_ROOM)
        except BaseException:
            self.close()
            raise
        self._part, self._at_work = min(size for _, size in at_work), len(at_work)
        self.batch_size = DEEP * self._part * len(at_work)
        for worker, _ in at_work:
            self._idle.put(worker)

    def chosen(self) -> Mapping[str, Any]:
        return self._workers[0].chosen or self._backend.chosen()

    def used(self) -> Mapping[str, int]:
        return sum((Counter(worker.used) for worker in self._workers), Counter())

    def close(self) -> None:
        if threads := vars(self).pop("_threads", None):
            threads.shutdown(wait=False, cancel_futures=True)
            with ThreadPoolExecutor(max(1, len(self._workers))) as closing:
                list(closing.map(Worker.close, self._workers))
            threads.shutdown()

    def caption(self, images: Sequence[Image]) -> list[str]:
        return self._ask("caption", images)

    def log_probabilities(self, requests: Sequence[tuple[Image, Sequence[str]]]) -> list[list[float]]:
        return self._ask("log_probabilities", requests)

    @property
    def gives_probabilities(self) -> bool:
        return bool(getattr(self._backend, "gives_probabilities", False))

    def summarize(self, requests: Sequence[SummaryRequest]) -> list[list[str]]:
        return self._ask("summarize", requests)

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image | None]:
        return self._ask("generate", requests)

    def score(self, evidence: Sequence[Evidence]) -> list[list[float]]:
        return self._ask("score", evidence)

    def bound(self, evidence: Sequence[Evidence]) -> list[list[Bound]]:
        return self._ask("bound", evidence)

    def seen(self, evidence: Sequence[Evidence]) -> list[npt.NDArray[np.bool_]]:
        return self._ask("seen", evidence)

    @property
    def gives_bounds(self) -> bool:
        return bool(getattr(self._backend, "gives_bounds", False))

    @property
    def rounds(self) -> Sequence[float]:
        return getattr(self._backend, "rounds", ())

    def _ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        def answer(part: Sequence[Any]) -> list[Any]:
            worker = self._idle.get()
            if worker is None:
                self._idle.put(None)  # for the next who waits
                raise DeviceError(f"every worker for {self.name} is lost", NO_ROOM)
            try:
                answers = worker.ask(method, part)
            except NoRoomError:
                self._dismiss()
                return answer(part)
            except BaseException:
                self._idle.put(worker)
                raise
            self._idle.put(worker)
            if len(answers) != len(part):
                raise PluginError(f"{len(answers)} answers came back for {len(part)} items")
            return answers

        parts = [items[start : start + self._part] for start in range(0, len(items), self._part)]
        return [one for answers in self._threads.map(answer, parts) for one in answers]

    def _dismiss(self) -> None:
        """Do without the worker that was just taken. After the last, whoever waits for one is told."""
        with self._counting:
            self._at_work -= 1
            if not self._at_work:
                self._idle.put(None)


def _load(worker: Worker) -> int | None:
    """Its batch size; None where there is no room for it."""
    try:
        return worker.load()
    except NoRoomError:
        return None
