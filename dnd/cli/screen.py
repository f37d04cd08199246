"""Standard output and standard error that may go away: a run of many hours is worth more than what it prints."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO


class Screen(io.RawIOBase):
    """A stream's file until it cannot be written to: a terminal that was closed, a closed pipe, a full disk.

    From then on all of it goes nowhere, which is reported once, on stderr.
    """

    failed = False
    """Something was lost for another reason than a closed pipe, as behind `| head`."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._lost = False

    def write(self, data: bytes) -> int:  # type: ignore[override]
        size = len(data)
        if not self._lost:
            try:
                return os.write(self._stream.fileno(), data)
            except OSError as error:
                self._lost = True
                if not isinstance(error, BrokenPipeError):
                    self.failed = True
                    if self._name == "standard output":
                        with suppress(OSError, ValueError):
                            print(f"{self._name} cannot be written: {error.strerror}", file=sys.stderr)
        return size

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()


def open_screens() -> None:
    """Put a Screen under `sys.stdout` and `sys.stderr`, both of which may be closed or unable to show a letter."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # a closed one's number would be the next file's
        os.set_inheritable(number, True)
    os.close(number)
    for name, known in (("stderr", sys.__stderr__), ("stdout", sys.__stdout__)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif stream is known and isinstance(stream, io.TextIOWrapper) and not isinstance(_raw(stream), Screen):
            screen = io.BufferedWriter(  # type: ignore[type-var]
                Screen(stream, f"standard {'output' if name == 'stdout' else 'error'}")
            )
            shown = io.TextIOWrapper(
                screen,
                encoding=stream.encoding,
                errors="backslashreplace" if stream.errors in ("strict", "backslashreplace") else stream.errors,
                line_buffering=stream.line_buffering or name == "stderr",
            )
            setattr(sys, name, shown)


def _raw(stream: object) -> object:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def output_is_lost() -> bool:
    """Whether some of what was printed did not arrive, though a reader may have waited for it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    raw = _raw(sys.stdout)
    return isinstance(raw, Screen) and raw.failed


def keep_stdout() -> None:
    """Standard output for what dnd prints itself, as `--json` promises: descriptor 1, which workers, libraries and
    child processes write to, leads to standard error from now on, until the process ends. Before `open_screens`."""
    stream = sys.__stdout__
    if stream is None or sys.stdout is not stream:  # another caller has redirected it already
        return
    try:
        own = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # one of them is closed
        return
    sys.stdout = sys.__stdout__ = os.fdopen(own, "w", encoding=stream.encoding, errors=stream.errors)  # type: ignore[misc]
