"""Standard output that may go away: a run of many hours is worth more than what it prints."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any


class Screen:
    """What `sys.stdout` is, until it cannot be written to: a terminal that was closed, a pipe that nobody reads, a
    full disk. From then on all of it goes nowhere, which is said once, on stderr."""

    def write(self, text: str) -> int:
        try:
            return sys.stdout.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            sys.stdout.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    @staticmethod
    def _give_up(error: OSError) -> None:
        with suppress(OSError, ValueError):  # what is still buffered goes nowhere, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # `| head` is meant so
            with suppress(OSError):
                print(f"standard output cannot be written: {error.strerror}; the work goes on", file=sys.stderr)
