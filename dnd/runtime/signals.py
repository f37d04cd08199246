"""SIGTERM, and SIGHUP of a terminal that goes away, as a request: the run finishes its batch, then stops; a second one
stops it at once. Under `nohup`, which ignores SIGHUP, the run goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_MESSAGE = b"\nStopping once this batch is finished; once more stops at once.\n"


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function: whether to stop. The second signal raises KeyboardInterrupt, as Ctrl-C does the first time."""
    requested = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        with suppress(OSError):  # the terminal is gone
            os.write(2, _MESSAGE)

    kinds = [kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) != signal.SIG_IGN]
    before = {kind: signal.signal(kind, request) for kind in kinds}
    try:
        yield requested.is_set
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
