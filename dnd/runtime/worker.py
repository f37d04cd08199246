"""A backend in a separate process: both ends of the pipe.

The process can be killed where a call hangs, and replaced where it dies. It ends by itself when the pipe closes, so
it never outlives its parent, however that ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from dnd.api import Backend, Runtime, is_device_lost, is_out_of_memory
from dnd.errors import DeviceError, NoAnswerError, PluginError, TooSlowError
from dnd.offline.environment import collect_rarely
from dnd.plugin.guard import guard
from dnd.runtime.devices import free_memory, reason_of
from dnd.runtime.ends import End, Ends, NoRoomError, WorkerSpec

_LOSSES = 16
"""So many losses in a row mean that the device or the backend is at fault, not the items."""
_PATIENCE = 60.0
"""Seconds that a backend may take to close."""
_TRIES = 60
"""Processes that may be lost before one starts."""
_PAUSE = 1.0
"""Seconds before the next is tried."""
CLOSE = "close"
"""The message that has a process close its backend."""

NO_ROOM = "What is computed is kept: the same command goes on from there once the cluster has room."


class Worker:
    """The parent's end: has a process load the backend, sends it items, and replaces it once it is lost."""

    def __init__(self, spec: WorkerSpec, ends: Ends) -> None:
        self.spec = spec
        self.chosen: Mapping[str, Any] = {}
        """The backend's `chosen` when it was closed."""
        self.used: Mapping[str, int] = {}
        """And its `used`."""
        self._ends = ends
        self._end: End | None = None
        self._busy = threading.Lock()
        """Held while an answer is awaited."""
        self._changing = threading.Lock()
        """Held while a process comes or goes."""
        self._losses: list[str] = []
        self._closed = False

    def load(self) -> int:
        """Load the backend in a process; its batch size. Raises what `load` raised there."""
        self._closed = False
        try:
            return self._start()
        except NoRoomError:
            raise
        except NoAnswerError as error:
            raise DeviceError(f"{self._name()} does not load: {error}", _KEPT) from None

    def _start(self) -> int:
        """Load the backend in a process that is spare, or in a new one; its batch size."""
        try:
            pickle.dumps(self.spec)
        except Exception as error:
            raise PluginError(
                f"{self._name()} cannot run in a process of its own: {error}",
                "Its class and settings must be importable by name. Choose one --device and no timeout.",
            ) from error
        while spare := self._ends.spare(self.spec):
            self._take(spare)
            with suppress(NoAnswerError):  # it has ended since
                return self._load()
            self.kill()
        for _ in range(_TRIES):
            end = self._ends.start(self.spec)
            self._take(end)
            if end.ready():
                return self._load()
            self.kill()
            time.sleep(_PAUSE)
        raise NoRoomError("every process that was started for it was lost")

    def _take(self, end: End) -> None:
        """NoAnswerError where the worker was closed meanwhile, by another thread."""
        with self._changing:
            if not self._closed:
                self._end = end
                return
        end.kill()
        raise NoAnswerError("it was stopped")

    def _load(self) -> int:
        size: int = self._exchange(self.spec, None)
        return size

    def ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        """Answers to some items. Where the process dies another gets them once more, then NoAnswerError."""
        try:
            return self._ask(method, items)
        except (TooSlowError, NoRoomError):
            raise
        except NoAnswerError:
            return self._ask(method, items)

    def _ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        if self._end is None and not self._closed:
            self._start_again()
        try:
            answers: list[Any] = self._exchange((method, list(items)), self.spec.timeout)
        except NoAnswerError as error:
            self.kill()
            self._losses.append(str(error))
            if len(self._losses) >= _LOSSES:
                raise DeviceError(f"{self._name()} failed {_LOSSES} times in a row: {error}", _KEPT) from None
            raise
        self._losses.clear()
        return answers

    def _start_again(self) -> None:
        try:
            self._start()
        except NoRoomError:
            raise
        except Exception as error:
            self.kill()
            why = f"{self._losses[-1]}; and it does not load again: {reason_of(error)}"
            raise DeviceError(f"{self._name()}: {why}", _KEPT) from error

    def _exchange(self, message: object, timeout: float | None) -> Any:
        """Send, wait, receive. Raises NoAnswerError with what the process did instead."""
        with self._busy:
            end = self._end
            if end is None:
                raise NoAnswerError("it was stopped")
            kind, value = pickle.loads(end.reply(message, timeout))
        if kind == "lost":
            raise NoAnswerError(f"the device is gone: {value}")
        if kind == "error":
            raise value
        return value

    def _name(self) -> str:
        return f"{self.spec.cls.name} on {self.spec.device}"

    def close(self) -> None:
        """Close the backend and leave its process; end that by force where it is at work or takes too long to close."""
        self._closed = True
        try:
            if self._end is not None and not self._busy.locked():
                self.chosen, self.used = self._exchange(CLOSE, _PATIENCE)
                with self._changing:
                    end, self._end = self._end, None
                if end is not None:
                    self._ends.leave(self.spec, end)
        except NoAnswerError:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End the process and its children now."""
        with self._changing:
            end, self._end = self._end, None
        if end is not None:
            end.kill()


_KEPT = (
    "What is computed is kept: the same command goes on from there. If the device is gone for good, add --device with "
    "those that are left."
)


# --- the child's end ---------------------------------------------------------------------------------


def reply_of(work: Callable[[], Any]) -> bytes:
    """Pickled: ("ok", what it returns), ("error", exception) or ("lost", reason of a device that is gone)."""
    full = False
    try:
        reply = pickle.dumps(("ok", work()))
    except BaseException as error:
        reply, full = _failure(error), is_out_of_memory(error)
    if full:  # past the handler, as in dnd.pipeline.map
        free_memory()
    return reply


class Server:
    """Answers messages with a backend: a WorkerSpec loads it, (method, items) asks it, CLOSE closes it."""

    def __init__(self) -> None:
        self._backend: Backend | None = None

    def answer(self, read: Callable[[], Any]) -> bytes:
        """See `reply_of`; `read` gives the message."""
        return reply_of(lambda: self._answer(read()))

    def _answer(self, message: Any) -> Any:
        if isinstance(message, WorkerSpec):
            self._backend = _load(message)
            return self._backend.batch_size
        backend = self._backend
        if message == CLOSE:
            self._backend = None
            if backend is None:
                return {}, {}
            guard(backend.name, backend.close)()
            free_memory()
            return dict(backend.chosen()), dict(backend.used())
        method, items = message
        return guard(type(backend).__name__, getattr(backend, method))(items)


def serve(descriptor: int) -> None:
    """Answer until an empty message comes. Runs in the worker process."""
    collect_rarely()
    pipe = Connection(descriptor)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    server = Server()
    while request := inbox.get():
        pipe.send_bytes(server.answer(partial(pickle.loads, request)))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[bytes]) -> None:
    """Pass messages on; at the end of the pipe, end the process, whatever it is busy with."""
    try:
        while True:
            inbox.put(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _load(spec: WorkerSpec) -> Backend:
    from dnd.models.weights import Weights
    from dnd.offline.environment import set_switches

    set_switches()
    if spec.device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(spec.device)
    backend = spec.cls(spec.config, Runtime(spec.device, Weights.default().resolve, spec.devices))
    guard(backend.name, backend.load)()
    return backend


def _failure(error: BaseException) -> bytes:
    """The error itself where the other end can have it, with its traceback as a note."""
    if not isinstance(error, Exception):
        error = PluginError(f"it ends the process with {type(error).__name__}({error})")
    if is_device_lost(error):
        return pickle.dumps(("lost", reason_of(error)))
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    try:
        reply = pickle.dumps(("error", error))
        pickle.loads(reply)
        return reply
    except Exception:
        return pickle.dumps(("error", PluginError(reason_of(error))))
