"""A stage as a map: items with stable keys in, durable rows out, whatever happens in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any, TypeVar

from dnd.api import is_device_lost, is_out_of_memory
from dnd.errors import DeviceError, DndError, NoAnswerError, OfflineError, PluginError, StoreError
from dnd.offline.block import raise_if_tried
from dnd.plugin.guard import guard
from dnd.runtime.devices import free_memory, place_of, reason_of
from dnd.runtime.stats import StageStats
from dnd.store.table import Table

_GONE = (
    "What is computed is kept: the same command goes on from there once the device works again. If the same item "
    "does it each time, --set timeout=600: backends then run in processes of their own, and only that item fails."
)
HOPELESS = 16
"""When this many items fail before any succeeds, the backend is broken, not the items."""


_LOG = logging.getLogger(__name__)


T = TypeVar("T")
R = TypeVar("R")
Rows = list[dict[str, Any]]


class Ahead:
    """What threads make of items before they are worked on, such as an opened image of its digest. `with ahead:`"""

    def __init__(self, make: Callable[[Any], object], workers: int) -> None:
        self._make, self._workers = make, workers
        self._made: dict[str, Future[object]] = {}

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(self._workers)

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._made.clear()

    def begin(self, batch: Iterable[tuple[str, object]]) -> None:
        for key, item in batch:
            if key not in self._made:
                self._made[key] = self._pool.submit(self._make, item)

    def take(self, key: str, item: object) -> object:
        """Once: what is needed again, after a failure, is made again."""
        made = self._made.pop(key, None)
        return made.result() if made else self._make(item)


class _Behind:
    """Makes batches durable on a thread while the next is worked on; at most one waits. `with behind:`"""

    def __init__(self, table: Table, rows: Callable[[Any], Rows], keep: Callable[[Rows], None]) -> None:
        """`keep` gets what was written, on the caller's thread."""
        self._table, self._rows, self._keep = table, rows, keep
        self._writing: Future[Rows] | None = None

    def __enter__(self) -> None:
        self._thread = ThreadPoolExecutor(1)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """What waits is written in any case; where something else went wrong before, that is what is told."""
        self._thread.shutdown()
        if error is None:
            self._wait()

    def put(self, done: Sequence[tuple[str, Any, Any]]) -> None:
        """Raises what went wrong with the batch before, which is kept now."""
        self._wait()
        self._writing = self._thread.submit(self._write, done)

    def _write(self, done: Sequence[tuple[str, Any, Any]]) -> Rows:
        made = self._rows(done)
        self._table.append(made)
        return made

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            self._keep(writing.result())


def complete(
    table: Table,
    items: Mapping[str, T],
    holder: AbstractContextManager[object],
    work: Callable[[list[Any]], Sequence[R]],
    rows: Callable[[Sequence[tuple[str, T, R]]], Rows],
    answer: Callable[[dict[str, Any]], Any],
    stats: StageStats,
    advance: Callable[[int], None],
    *,
    batch_size: Callable[[], int],
    ahead: Ahead | None = None,
) -> dict[str, Any]:
    """Give every item its row in the table, or its reason in `stats.failures`: what `answer` makes of the rows, by the
    items' keys.

    Items in the table are not computed again. `rows` turns (key, item, output) triples into rows of the table; a batch
    is made durable by a thread while the next is worked on. `holder`, a backend or whatever holds the memory that
    `work` needs, is entered only if there is work; then it knows its batch size. `work` gets the items, or what `ahead`
    makes of them.
    """
    found = _stored(table, items, answer)
    missing = [key for key in items if key not in found]
    stats.items += len(items)
    advance(len(found))
    if not missing:
        return found
    work = guard(_name(holder), work)

    def keep(made: Rows) -> None:
        found.update((row["key"], answer(row)) for row in made)

    behind = _Behind(table, rows, keep)
    with ahead or nullcontext(), _held(holder, stats), behind:
        start = 0
        while start < len(missing):
            size = batch_size()
            batch = [(key, items[key]) for key in missing[start : start + size]]
            start += len(batch)
            if ahead:
                ahead.begin(batch)
                ahead.begin([(key, items[key]) for key in missing[start : start + size]])
            done = _answers(batch, work, stats, ahead.take if ahead else lambda key, item: item)
            behind.put(done)
            stats.computed += len(done)
            _raise_if_hopeless(holder, stats)
            advance(len(batch))
    table.compact()
    return found


def _stored(table: Table, items: Mapping[str, T], answer: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The answers of the items that the table has, by key; of several rows with one key, the first counts."""
    found: dict[str, Any] = {}
    for row in table.rows(keys=items):
        if row["key"] not in found:
            found[row["key"]] = answer(row)
    return found


def _raise_if_hopeless(holder: AbstractContextManager[object], stats: StageStats) -> None:
    if not stats.computed and len(stats.failures) >= HOPELESS:
        reason = next(iter(stats.failures.values()))
        raise PluginError(
            f"{_name(holder)} failed on every item it was given, the first time with: {reason}",
            "Nothing computed so far is lost; mend the backend or choose another, then run the same command.",
        )


@contextmanager
def _held(holder: AbstractContextManager[object], stats: StageStats) -> Iterator[None]:
    """Inside `holder`, whose name is added to its errors."""
    before = stats.backend_seconds
    with stats.inside():
        _enter(holder)
    stats.load_seconds += stats.backend_seconds - before
    try:
        yield
    finally:
        leave(holder)


def leave(holder: AbstractContextManager[object]) -> None:
    """Close it; its name is added to its errors."""
    try:
        guard(_name(holder), holder.__exit__)(None, None, None)
    except Exception as error:
        if not is_device_lost(error):  # the first error of the lost device is the useful one
            error.add_note(f"in {_name(holder)}, while it was closed")
            raise


def _enter(holder: AbstractContextManager[object]) -> None:
    try:
        guard(_name(holder), holder.__enter__)()
    except DndError:
        raise
    except Exception as error:
        if not is_out_of_memory(error) and not is_device_lost(error):
            error.add_note(f"in {_name(holder)}, while it was loaded")
            raise
        where = getattr(getattr(holder, "runtime", None), "device", "the device")
        what = "does not fit into the memory of" if is_out_of_memory(error) else "cannot use"
        raise DeviceError(
            f"{_name(holder)} {what} {where}: {reason_of(error)}",
            "Choose another --device, or what needs less: a smaller model or a dtype or quantization of fewer bits.",
        ) from error


def _name(holder: AbstractContextManager[object]) -> str:
    return str(getattr(holder, "name", type(holder).__name__))


def _answers(
    batch: Sequence[tuple[str, T]],
    work: Callable[[list[Any]], Sequence[R]],
    stats: StageStats,
    given: Callable[[str, T], Any],
) -> list[tuple[str, T, R]]:
    """Outputs for a batch of (key, item), of which `work` gets what is `given`; where that fails, for its halves, so
    that only the items at fault fail.

    Where a worker process was lost, which costs a start each time, for each item alone.
    """
    try:
        taken = [given(key, item) for key, item in batch]
        with stats.inside():
            outputs = work(taken)
        if len(outputs) != len(batch):
            raise PluginError(f"{len(outputs)} answers came back for {len(batch)} items")
        return [(key, item, output) for (key, item), output in zip(batch, outputs, strict=True)]
    except (DeviceError, OfflineError, StoreError):  # not the items' fault
        raise
    except Exception as error:
        raise_if_tried()  # nor is this
        if is_device_lost(error):
            raise DeviceError(f"the device failed in the stage {stats.name!r}: {reason_of(error)}", _GONE) from error
        if len(batch) == 1:
            key = batch[0][0]
            stats.failures[key] = f"{stats.name}: {reason_of(error)}"
            where = place_of(error)
            _LOG.info("%s: no answer for %.80r: %s%s", stats.name, key, reason_of(error), where and f" ({where})")
            return []
        cuts = range(1, len(batch)) if isinstance(error, NoAnswerError) else [len(batch) // 2]
        full = is_out_of_memory(error)
    # Past the handler: an error holds on to the tensors of the call that it came from.
    if full:
        free_memory()
    parts = pairwise([0, *cuts, len(batch)])
    return [answer for start, end in parts for answer in _answers(batch[start:end], work, stats, given)]
