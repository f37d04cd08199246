"""The other end of a worker: a process that answers messages, here or on another machine.

One that has closed its backend on a CPU waits for the next backend of the run: its start, with the imports, costs
seconds. On a GPU it ends, since only then all its memory is surely free.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe

from dnd.api import Backend, Config
from dnd.errors import NoAnswerError, TooSlowError

_PATIENCE = 60.0
"""Seconds that a process may take to end."""


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


class End(ABC):
    """A process with a `dnd.runtime.worker.Server`."""

    def ready(self) -> bool:
        """Wait until it is there. False where another may be tried, NoRoomError where there is no room for one."""
        return True

    @abstractmethod
    def reply(self, message: object, timeout: float | None) -> bytes:
        """To a message. TooSlowError after so many seconds, NoAnswerError where it is gone."""

    def end(self) -> None:
        """Let it end by itself, else by force."""
        self.kill()

    @abstractmethod
    def kill(self) -> None:
        """End it and its children now."""


class Ends(ABC):
    """Starts ends, and keeps those that may serve again."""

    def __init__(self, *, keeps: bool = True) -> None:
        self._keeps = keeps
        self._spare: dict[tuple[str, int | None], list[End]] = {}
        self._changing = threading.Lock()

    def spare(self, spec: WorkerSpec) -> End | None:
        """One that is left from another worker; it may be gone, unnoticed."""
        with self._changing:
            spare = self._spare.get((spec.device, spec.threads))
            return spare.pop() if spare else None

    @abstractmethod
    def start(self, spec: WorkerSpec) -> End:
        """A new one, perhaps not `ready`."""

    def leave(self, spec: WorkerSpec, end: End) -> None:
        """By a worker that has closed its backend there."""
        if self._keeps and spec.device == "cpu":
            with self._changing:
                self._spare.setdefault((spec.device, spec.threads), []).append(end)
        else:
            end.end()

    def close(self) -> None:
        """End those that wait."""
        with self._changing:
            spare, self._spare = self._spare, {}
        for end in [end for some in spare.values() for end in some]:
            end.end()


class Processes(Ends):
    """Processes of this machine."""

    def start(self, spec: WorkerSpec) -> End:
        return _Process(spec.threads)


class _Process(End):
    def __init__(self, threads: int | None) -> None:
        self._pipe, there = Pipe()
        path = [place for place in sys.path if isinstance(place, str)]
        code = f"import sys; sys.path[:] = {path!r}; from dnd.runtime.worker import serve; serve({there.fileno()})"
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {}),
                start_new_session=True,  # Ctrl-C is ours to handle; and its own children are killed with it
            )
        self._busy = threading.Lock()
        """Held while the pipe is in use."""

    def reply(self, message: object, timeout: float | None) -> bytes:
        try:
            with self._busy:
                self._pipe.send(message)
                if not self._pipe.poll(timeout):
                    raise TooSlowError(f"no answer within {timeout:g} s")
                return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            raise NoAnswerError(f"its process {_how_it_ended(self._process.returncode)}") from error

    def end(self) -> None:
        try:
            with self._busy:
                self._pipe.send_bytes(b"")
            self._process.wait(_PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with self._busy:  # a thread that waits for an answer has seen the end of the pipe
            self._pipe.close()


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "closed its pipe"
    if code >= 0:
        return f"exited with status {code}"
    return f"was killed by {signal.Signals(-code).name}"
