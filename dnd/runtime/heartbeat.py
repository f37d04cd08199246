"""status.json in a run's folder: how far the run is, for `dnd status` from another terminal or another machine.

A thread writes it every few seconds, whatever the run itself is busy with; the last state stays when the run ends.
Where it cannot be written, the run goes on without.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from dnd.errors import DndError, NotYetError, StoppedError
from dnd.files import no_follow
from dnd.runtime.progress import Meter
from dnd.runtime.stats import StageStats
from dnd.store.files import write_atomic
from dnd.text import json_text

STATUS = "status.json"
BEAT_SECONDS = 2.0
_LOG_SECONDS = 30.0
"""Between two lines of progress in the log."""
_LOG = logging.getLogger(__name__)


class Heartbeat:
    """`with Heartbeat(...)` writes the file until the block ends, and then how it ended."""

    def __init__(self, folder: Path, meter: Meter, all_stats: Sequence[StageStats]) -> None:
        self._file, self._meter, self._tallies = folder / STATUS, meter, all_stats
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._started, self._clock = _now(), time.monotonic()
        self._written = False
        self.facts: dict[str, Any] = {}
        """More keys of the file."""

    def __enter__(self) -> Self:
        self._write("running")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            state, message = "done", ""
        elif isinstance(error, NotYetError):
            state, message = "waiting", str(error)
        elif isinstance(error, StoppedError | KeyboardInterrupt):
            state, message = "interrupted", "the same command goes on from there"
        else:
            state, message = "failed", str(error) or type(error).__name__
        # Without a handler Python prints errors by itself, and the caller reports this one.
        level = logging.ERROR if state == "failed" and _LOG.hasHandlers() else logging.INFO
        _LOG.log(level, "%s", f"{state}: {message}".removesuffix(": "))
        self._write(state, message)

    def _beat(self) -> None:
        logged, logged_way = time.monotonic(), ""
        while not self._ended.wait(BEAT_SECONDS):
            self._write("running")
            if time.monotonic() - logged >= _LOG_SECONDS and self._meter.ways:
                logged, way = time.monotonic(), self._meter.ways[-1]
                if way.seconds is None and logged_way != (logged_way := str(way)):
                    _LOG.info("%s", way)

    def _write(self, state: str, message: str = "") -> None:
        text = json_text(self._record(state, message), indent=1)
        data = f"{text}\n".encode("utf-8", "replace")
        try:
            write_atomic(self._file, data, flush=False)
            self._written = True
        except DndError:
            if self._written:
                self._write_over(data)

    def _write_over(self, data: bytes) -> None:
        """A full disk has no room for another file; this one's own blocks hold its last words all the same."""
        with suppress(OSError), open(self._file, "r+b", opener=no_follow) as file:
            file.write(data)
            file.truncate()

    def _record(self, state: str, message: str) -> dict[str, Any]:
        ways = list(self._meter.ways)
        now = ways[-1] if ways and state == "running" else None
        return {
            "state": state,
            "message": message,
            "stage": now.name if now else "",
            "done": now.done if now else 0,
            "total": now.total if now else 0,
            "rate": now.rate and round(now.rate, 3) if now else None,
            "eta": now.left and round(now.left, 1) if now else None,
            "failures": sum(len(stats.failures) for stats in list(self._tallies)),
            "stages": [
                {"name": way.name, "done": way.done, "total": way.total, "seconds": _rounded(way.seconds)}
                for way in ways
            ],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "updated": _now(),
            "seconds": round(time.monotonic() - self._clock, 1),
            **self.facts,
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
