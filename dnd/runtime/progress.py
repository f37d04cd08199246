"""How far a run is: bars on a terminal, and the same figures for its log and its heartbeat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

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


class _Left(TimeRemainingColumn):
    """Of a stage by its own speed; of the whole run by what the task's field `left` gives."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if "left" not in task.fields:
            return super().render(task)
        left = None if task.finished else task.fields["left"]()
        return Text("" if left is None else spell_seconds(left), style="progress.remaining")


class _Bars(Progress):
    """A table with heads; the bar of the whole run last."""

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        table = super().make_tasks_table(sorted(tasks, key=lambda task: "left" in task.fields))
        for column, head in zip(table.columns, ("stage", "", "done", "elapsed", "left"), strict=True):
            column.header = Text(head, style="dim")
        table.show_header = table.row_count > 0
        return table


class _Notes(logging.Handler):
    """What a plugin says on the logger "dnd.notes", as lines above the bars."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(self.format(record))


class Meter:
    """One bar per stage. `with meter:` shows them."""

    def __init__(
        self,
        console: Console,
        *,
        stopped: Callable[[], bool] = lambda: False,
        plan: Mapping[str, float | None] | None = None,
    ) -> None:
        """Once `stopped` is true, the next step of any stage raises StoppedError. `plan` are the stages of the run with
        the seconds of each, None where they are not known: it gives a bar of the whole run."""
        self.ways: list[Way] = []
        """The stages so far, the one under way last."""
        self._stopped, self._plan = stopped, dict(plan or {})
        self._progress = _Bars(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Left(),
            console=console,
        )
        self._whole: TaskID | None = None
        self._notes = _Notes(self.note)

    def __enter__(self) -> Meter:
        if self._plan:
            self._whole = self._progress.add_task("all stages", total=len(self._plan), left=lambda: self.left)
        notes = logging.getLogger("dnd.notes")
        notes.setLevel(logging.INFO)
        notes.addHandler(self._notes)
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        logging.getLogger("dnd.notes").removeHandler(self._notes)
        if self._whole is not None and exc[0] is None:
            self._progress.update(self._whole, completed=len(self._plan))
        self._progress.stop()

    @property
    def left(self) -> float | None:
        """Seconds to the end of the plan, by the speed of the stage under way and what was planned for those after it;
        None where that is not known."""
        ahead = [seconds for name, seconds in self._plan.items() if name not in {way.name for way in self.ways}]
        now = self.ways[-1] if self.ways and self.ways[-1].seconds is None else None
        if now is not None:
            ahead.append(now.left if now.left is not None else self._plan.get(now.name))
        return None if None in ahead else sum(seconds for seconds in ahead if seconds is not None)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for one stage; yields a function that advances it by a number of items once they are durable:
        StoppedError comes out of it where the run is to stop."""
        way = Way(name, total)
        self.ways.append(way)
        begun = len(self._plan.keys() & {one.name for one in self.ways})
        of = f"{begun}/{len(self._plan)} " if name in self._plan else ""
        task = self._progress.add_task(f"{of}{name}", total=total)
        _LOG.info("%s: %d items", name, total)

        def advance(n: int) -> None:
            way.add(n)
            self._progress.advance(task, n)
            if self._stopped():
                raise StoppedError("stopped", "What is finished is kept: the same command goes on from there.")

        yield advance
        way.done, way.seconds = total, time.monotonic() - way.began
        self._progress.update(task, completed=total)
        if self._whole is not None:
            self._progress.update(self._whole, completed=begun)
        _LOG.info("%s: done in %s", name, spell_seconds(way.seconds))


def spell_seconds(seconds: float) -> str:
    """1 h 02 min, 3 min 04 s, 5.6 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
