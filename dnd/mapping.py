"""A stage as a map: items with stable keys in, durable rows out, whatever happens in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dnd.api import Backend
from dnd.errors import PluginError, StoreError
from dnd.store import Table

HOPELESS = 16
"""So many items failing before any succeeds means that the backend is broken, not the items."""


@dataclass
class Tally:
    """What a stage was asked and what it cost; goes into run.json."""

    name: str
    key: str = ""
    items: int = 0
    computed: int = 0
    """Items not found in the store."""
    seconds: float = 0.0
    backend_seconds: float = 0.0
    """Of those, inside the backend or the target, loading included."""
    failures: dict[str, str] = field(default_factory=dict)
    """Key of an item -> why it has no answer."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count this block as the stage's time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count this block as the backend's time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.backend_seconds += time.perf_counter() - began


T = TypeVar("T")
R = TypeVar("R")


def complete(
    table: Table,
    items: Mapping[str, T],
    backend: Backend,
    work: Callable[[list[T]], Sequence[R]],
    rows: Callable[[Sequence[tuple[str, T, R]]], list[dict[str, Any]]],
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    """See to it that every item has its row, or its reason in `tally.failures`.

    Items in the table are not asked for again. `rows` turns (key, item, answer) triples into rows of the
    table; each batch of `backend.batch_size` is durable before the next begins. The backend is loaded only
    if there is work.
    """
    done = table.keys()
    todo = [key for key in items if key not in done]
    tally.items += len(items)
    advance(len(items) - len(todo))
    if not todo:
        return
    succeeded = False
    try:
        with tally.inside():
            backend.load()
        for start in range(0, len(todo), backend.batch_size):
            keys = todo[start : start + backend.batch_size]
            answers = _answers(keys, items, work, tally)
            table.append(rows(answers))
            tally.computed += len(answers)
            succeeded = succeeded or bool(answers)
            if not succeeded and len(tally.failures) >= HOPELESS:
                reason = next(iter(tally.failures.values()))
                raise PluginError(
                    f"{backend.name} failed on every item it was given, the first time with: {reason}",
                    "Nothing computed so far is lost; mend the backend or choose another, then run the same command.",
                )
            advance(len(keys))
    finally:
        backend.close()
    table.compact()


def _answers(
    keys: list[str], items: Mapping[str, T], work: Callable[[list[T]], Sequence[R]], tally: Tally
) -> list[tuple[str, T, R]]:
    """Ask for a batch; where that fails, for its halves, so that only the items at fault fail."""
    batch = [items[key] for key in keys]
    try:
        with tally.inside():
            outputs = work(batch)
        if len(outputs) != len(batch):
            raise PluginError(f"{len(outputs)} answers came back for {len(batch)} items")
    except StoreError:
        raise
    except Exception as error:
        if len(keys) == 1:
            tally.failures[keys[0]] = f"{tally.name}: {str(error) or type(error).__name__}"
            return []
        middle = len(keys) // 2
        return _answers(keys[:middle], items, work, tally) + _answers(keys[middle:], items, work, tally)
    return list(zip(keys, batch, outputs, strict=True))
