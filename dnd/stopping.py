"""SIGTERM as a wish: the run finishes its batch, then stops; a second one stops it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SAID = b"\nStopping once this batch is finished; once more stops at once.\n"


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Yields what tells whether to stop. The second signal raises KeyboardInterrupt, as Ctrl-C does the first time."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        os.write(2, _SAID)

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
