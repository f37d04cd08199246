"""A backend in a separate process: both ends of the pipe.

The process can be killed where a call hangs, and replaced where it dies. It ends by itself when the pipe closes, so
it never outlives its parent, however that ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from dnd.api import Backend, Config, Runtime, is_device_lost, is_out_of_memory
from dnd.errors import DeviceError, NoAnswerError, PluginError, TooSlowError
from dnd.runtime.devices import free_memory, reason_of

_LOSSES = 16
"""So many losses in a row mean that the device or the backend is at fault, not the items."""
_PATIENCE = 60.0
"""Seconds that a backend may take to close."""


NO_ROOM = "What is computed is kept: the same command goes on from there once the cluster has room."


class NoRoomError(NoAnswerError):
    """Nowhere to start a worker, now or again; others may be at work."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is to make. Everything in it can be pickled."""

    cls: type[Backend]
    config: Config
    device: str
    devices: tuple[str, ...]
    timeout: float | None
    """Seconds for one call."""
    threads: int | None = None
    """Of torch and the like, where they are not to be as many as the machine has cores."""


class Worker:
    """The parent's end: starts the process, sends it items, and replaces it once it is lost."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.chosen: Mapping[str, Any] = {}
        """The backend's `chosen` when it was closed."""
        self.used: Mapping[str, int] = {}
        """And its `used`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._busy = threading.Lock()
        """Held while an answer is awaited."""
        self._changing = threading.Lock()
        """Held while a process comes or goes."""
        self._losses: list[str] = []
        self._closed = False

    def load(self) -> int:
        """Start the process and load the backend; its batch size. Raises what `load` raised there."""
        self._closed = False
        try:
            return self._start()
        except NoRoomError:
            raise
        except NoAnswerError as error:
            raise DeviceError(f"{self._name()} does not load: {error}", _KEPT) from None

    def _start(self) -> int:
        """Start the process and load the backend there; its batch size."""
        try:
            pickle.dumps(self.spec)
        except Exception as error:
            raise PluginError(
                f"{self._name()} cannot run in a process of its own: {error}",
                "Its class and settings must be importable by name. Choose one --device and no timeout.",
            ) from error
        self._begin()
        size: int = self._exchange(self.spec, None)
        return size

    def _begin(self) -> None:
        """Start the process. NoAnswerError where it was closed meanwhile."""
        here, there = Pipe()
        path = [place for place in sys.path if isinstance(place, str)]
        code = f"import sys; sys.path[:] = {path!r}; from dnd.runtime.worker import serve; serve({there.fileno()})"
        with there, self._changing:
            if self._closed:  # by another thread meanwhile
                here.close()
                raise NoAnswerError("it was stopped")
            self._pipe = here
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | ({"OMP_NUM_THREADS": str(self.spec.threads)} if self.spec.threads else {}),
                start_new_session=True,  # Ctrl-C is ours to handle; and its own children are killed with it
            )

    def ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        """Answers to some items. Where the process dies a new one gets them once more, then NoAnswerError."""
        try:
            return self._ask(method, items)
        except (TooSlowError, NoRoomError):
            raise
        except NoAnswerError:
            return self._ask(method, items)

    def _ask(self, method: str, items: Sequence[Any]) -> list[Any]:
        if not self._started() and not self._closed:
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

    def _started(self) -> bool:
        return self._process is not None

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
            kind, value = pickle.loads(self._pass(message, timeout))
        if kind == "lost":
            raise NoAnswerError(f"the device is gone: {value}")
        if kind == "error":
            raise value
        return value

    def _pass(self, message: object, timeout: float | None) -> bytes:
        """A message to the other end, and its reply. TooSlowError, or NoAnswerError where there is none."""
        pipe, process = self._pipe, self._process
        if pipe is None or process is None:
            raise NoAnswerError("it was stopped")
        try:
            pipe.send(message)
            if not pipe.poll(timeout):
                raise TooSlowError(f"no answer within {timeout:g} s")
            return pipe.recv_bytes()
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            raise NoAnswerError(f"its process {_how_it_ended(process.returncode)}") from error

    def _name(self) -> str:
        return f"{self.spec.cls.name} on {self.spec.device}"

    def close(self) -> None:
        """End the process: by its backend's `close`, or by force where it is at work or takes too long to close."""
        self._closed = True
        try:
            if self._started() and not self._busy.locked():
                self.chosen, self.used = self._exchange(None, _PATIENCE)
                self._wait()
        except (NoAnswerError, subprocess.TimeoutExpired):
            pass
        finally:
            self.kill()

    def _wait(self) -> None:
        """Until the process, which has closed its backend, has ended."""
        if self._process is not None:
            self._process.wait(_PATIENCE)

    def kill(self) -> None:
        """End the process and its children now."""
        with self._changing:
            process, pipe = self._process, self._pipe
            self._process = self._pipe = None
        if process is not None and pipe is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with self._busy:  # a thread that waits for an answer has seen the end of the pipe
                pipe.close()


_KEPT = (
    "What is computed is kept: the same command goes on from there. If the device is gone for good, add --device with "
    "those that are left."
)


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "closed its pipe"
    if code >= 0:
        return f"exited with status {code}"
    return f"was killed by {signal.Signals(-code).name}"


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
    """Answers messages with a backend: a WorkerSpec loads it, None closes it, (method, items) asks it."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self.closed = False

    def answer(self, read: Callable[[], Any]) -> bytes:
        """See `reply_of`; `read` gives the message."""
        return reply_of(lambda: self._answer(read()))

    def _answer(self, message: Any) -> Any:
        if isinstance(message, WorkerSpec):
            self._backend = _load(message)
            return self._backend.batch_size
        if message is None:
            self.closed = True
            if self._backend is None:
                return {}, {}
            self._backend.close()
            return dict(self._backend.chosen()), dict(self._backend.used())
        method, items = message
        return getattr(self._backend, method)(items)


def serve(descriptor: int) -> None:
    """Answer until a stop is requested. Runs in the worker process."""
    pipe = Connection(descriptor)
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    server = Server()
    while not server.closed:
        request = inbox.get()
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
    backend.load()
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
