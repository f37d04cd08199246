"""Run a command, and see to it that nothing which it started outlives it, or the process that wanted it.

    python reaper.py SECONDS COMMAND...     (standard input: a pipe whose other end the wanting process holds)

vLLM starts processes of its own (an engine, workers), and one of them that is left over keeps a GPU's memory. This
small process stands between: it ends the whole tree when the pipe is closed, which also happens when the
wanting process is killed without a chance to clean up, on SIGTERM, and when the command ends by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(grace: float, command: list[str]) -> int:
    """`grace`: seconds between SIGTERM and SIGKILL."""
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: ended.append(number))
    wanted_by = os.getppid()
    prctl = _prctl()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # grandchildren whose parent died become ours, so that none gets lost
    # SIGTERM: killed, vLLM's server would leave its engine behind, with the GPU's memory.
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    )
    try:
        while child.poll() is None and not ended and os.getppid() == wanted_by:
            readable, _, _ = select.select([0], [], [], 0.2)
            if readable and not os.read(0, 1):
                break
    finally:
        end_children(grace)
    code = child.wait()
    return code if code >= 0 else 128 - code


def end_children(grace: float) -> None:
    """SIGTERM to all descendants, then SIGKILL until none is left."""
    me = psutil.Process()
    _send(me, "terminate", grace)
    while me.children(recursive=True):
        _send(me, "kill", 1.0)


def _send(me: psutil.Process, what: str, seconds: float) -> None:
    processes = me.children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, what)()
    psutil.wait_procs(processes, timeout=seconds)


def _prctl() -> Callable[[int, int], object]:
    """Linux's prctl; elsewhere nothing, and the pipe alone must do."""
    if sys.platform != "linux":
        return lambda option, value: None
    libc = ctypes.CDLL(None)
    return lambda option, value: libc.prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
