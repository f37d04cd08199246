"""A backend's work spread over devices, one worker process each."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from dnd.api import Backend, Bound, Evidence, ImageRequest, SummaryRequest
from dnd.errors import PluginError
from dnd.runtime.worker import Worker, WorkerSpec

if TYPE_CHECKING:
    from PIL.Image import Image


class WorkerPool(Backend):
    """Stands for a backend: the same methods and answers, from as many of it as there are devices.

    A batch is dealt in the parts in which a single backend would have got it, so that answers do not depend on how
    many share the work.
    """

    def __init__(self, backend: Backend, devices: Sequence[str], timeout: float | None = None) -> None:
        """`backend` is never loaded, the workers' own are. `timeout`: seconds for what a single one gets at once."""
        super().__init__(backend.config, backend.runtime)
        self.name = backend.name  # type: ignore[misc]
        self._backend = backend
        alone = len(devices) == 1
        self._workers = [
            Worker(
                WorkerSpec(type(backend), backend.config, one, backend.runtime.devices if alone else (one,), timeout)
            )
            for one in devices
        ]
        self._part = 1

    def load(self) -> None:
        self.close()
        self._threads = ThreadPoolExecutor(len(self._workers))
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        try:
            self._part = min(self._threads.map(Worker.load, self._workers))
        except BaseException:
            self.close()
            raise
        self.batch_size = self._part * len(self._workers)
        for worker in self._workers:
            self._idle.put(worker)

    def chosen(self) -> Mapping[str, Any]:
        return self._workers[0].chosen or self._backend.chosen()

    def close(self) -> None:
        if threads := vars(self).pop("_threads", None):
            threads.shutdown(wait=False, cancel_futures=True)
            with ThreadPoolExecutor(len(self._workers)) as closing:
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

    def generate(self, requests: Sequence[ImageRequest]) -> list[Image]:
        return self._ask("generate", requests)

    def score(self, evidence: Sequence[Evidence]) -> list[list[float]]:
        return self._ask("score", evidence)

    def bound(self, evidence: Sequence[Evidence]) -> list[list[Bound]]:
        return self._ask("bound", evidence)

    @property
    def gives_bounds(self) -> bool:
        return bool(getattr(self._backend, "gives_bounds", False))

    @property
    def rounds(self) -> Sequence[float]:
        return getattr(self._backend, "rounds", ())

    def _ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        def answer(part: Sequence[Any]) -> list[Any]:
            worker = self._idle.get()
            try:
                answers = worker.ask(method, part)
            finally:
                self._idle.put(worker)
            if len(answers) != len(part):
                raise PluginError(f"{len(answers)} answers came back for {len(part)} items")
            return answers

        parts = [items[start : start + self._part] for start in range(0, len(items), self._part)]
        return [one for answers in self._threads.map(answer, parts) for one in answers]
