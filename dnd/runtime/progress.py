"""How far a run is: bars on a terminal, and the same figures for its log and its heartbeat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dnd.errors import StoppedError

_LOG = logging.getLogger(__name__)


@dataclass
class Way:
    """How far a stage is. Durations are by a monotonic clock."""

    name: str
    total: int
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    """In all, once it has ended."""
    _reused: int = 0
    _counted: float | None = None
    """When the first items were counted, which are those that an earlier run had done."""

    def add(self, n: int) -> None:
        if self._counted is None:
            self._counted, self._reused = time.monotonic(), n
        self.done += n

    @property
    def rate(self) -> float | None:
        """Items per second, those of earlier runs aside."""
        new = self.done - self._reused
        return new / (time.monotonic() - self._counted) if self._counted is not None and new else None

    @property
    def left(self) -> float | None:
        """Seconds to the end of the stage."""
        return (self.total - self.done) / self.rate if self.rate else None

    def __str__(self) -> str:
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        rate = f", {self.rate:.3g} per second" if self.rate else ""
        left = f", {spell_seconds(self.left)} left" if self.left else ""
        return f"{self.name}: {self.done} of {self.total}{share}{rate}{left}"


class Meter:
    """One bar per stage. `with meter:` shows them."""

    def __init__(self, console: Console, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Once `stopped` is true, the next step of any stage raises StoppedError."""
        self.ways: list[Way] = []
        """The stages so far, the one under way last."""
        self._stopped = stopped
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> Meter:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for one stage; yields a function that advances it by a number of items once they are durable:
        StoppedError comes out of it where the run is to stop."""
        way = Way(name, total)
        self.ways.append(way)
        task = self._progress.add_task(name, total=total)
        _LOG.info("%s: %d items", name, total)

        def advance(n: int) -> None:
            way.add(n)
            self._progress.advance(task, n)
            if self._stopped():
                raise StoppedError("stopped", "What is finished is kept: the same command goes on from there.")

        yield advance
        way.done, way.seconds = total, time.monotonic() - way.began
        self._progress.update(task, completed=total)
        _LOG.info("%s: done in %s", name, spell_seconds(way.seconds))


def spell_seconds(seconds: float) -> str:
    """1 h 02 min, 3 min 04 s, 5.6 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
