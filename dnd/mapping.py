"""A stage as a map: items with stable keys in, durable rows out, whatever happens in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from dnd.api import Backend
from dnd.devices import free_memory, is_full, is_lost, place_of, reason_of
from dnd.errors import DamagedError, DeviceError, DndError, PluginError, StoreError
from dnd.offline import raise_if_tried
from dnd.peak import Peak
from dnd.scratch import Ledger
from dnd.table import Table
from dnd.worker import NoAnswerError

_GONE = (
    "What is computed is kept: the same command goes on from there once the device works again. If the same item "
    "does it each time, --set timeout=600: backends then run in processes of their own, and only that item fails."
)
HOPELESS = 16
"""So many items failing before any succeeds means that the backend is broken, not the items."""


_LOG = logging.getLogger(__name__)


class Failures(dict[str, str]):
    """Key of an item -> why it has no answer."""

    def __missing__(self, key: str) -> str:
        """Neither an answer nor a reason: its row was there, and then it was not."""
        raise DamagedError(f"what was stored of {key!r} is gone", "Give the same command again: the rest is kept.")


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
    load_seconds: float = 0.0
    """Of those, loading it."""
    passed: tuple[int, float] = (0, 0.0)
    """Of the probing pass: images that it took through the target, and its seconds."""
    failures: Failures = field(default_factory=Failures)
    chosen: dict[str, Any] = field(default_factory=dict)
    """What the backend's automatic settings came to."""
    used: dict[str, int] = field(default_factory=dict)
    """What the backend says it has used up."""
    peak: int = 0
    """Bytes of main memory in use at most while it ran."""
    device_peak: int = 0
    """The same of the fullest GPU."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count this block as the stage's time."""
        began, peak = time.perf_counter(), Peak()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
            self.peak, self.device_peak = max(self.peak, peak.bytes()), max(self.device_peak, peak.device_bytes())

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count this block as the backend's time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.backend_seconds += time.perf_counter() - began


R = TypeVar("R")


def complete(
    table: Table,
    items: Ledger,
    backend: Backend,
    work: Callable[[list[Any]], Sequence[R]],
    rows: Callable[[Sequence[tuple[str, Any, R]]], list[dict[str, Any]]],
    answer: Callable[[dict[str, Any]], object],
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    """See to it that every item has its row, or its reason in `tally.failures`.

    Items in the table are not asked for again. `rows` turns (key, item, output) triples into rows of the
    table; each batch of `backend.batch_size` is durable before the next begins. What `answer` makes of a row, old or
    new, is the item's answer in the ledger. The backend is loaded only if there is work.
    """
    table.fill(items, answer)
    tally.items += len(items)
    advance(len(items) - items.left)
    if not items.left:
        return
    succeeded = False
    try:
        with tally.inside():
            _load(backend)
        tally.load_seconds = tally.backend_seconds
        for batch in items.batches(backend.batch_size):
            done = _answers(batch, work, tally)
            made = rows(done)
            table.append(made)
            for row in made:
                items.settle(row["key"], answer(row))
            tally.computed += len(done)
            succeeded = succeeded or bool(done)
            if not succeeded and len(tally.failures) >= HOPELESS:
                reason = next(iter(tally.failures.values()))
                raise PluginError(
                    f"{backend.name} failed on every item it was given, the first time with: {reason}",
                    "Nothing computed so far is lost; mend the backend or choose another, then run the same command.",
                )
            advance(len(batch))
    finally:
        _close(backend)
    table.compact()


def _load(backend: Backend) -> None:
    try:
        backend.load()
    except DndError:
        raise
    except Exception as error:
        if not is_full(error) and not is_lost(error):
            error.add_note(f"in {backend.name}, while it was loaded")
            raise
        where = getattr(getattr(backend, "runtime", None), "device", "the device")
        what = "does not fit into the memory of" if is_full(error) else "cannot use"
        raise DeviceError(
            f"{backend.name} {what} {where}: {reason_of(error)}",
            "Choose another --device, or what needs less: a smaller model or a dtype or quantization of fewer bits.",
        ) from error


def _close(backend: Backend) -> None:
    try:
        backend.close()
    except Exception as error:
        if not is_lost(error):  # what was said when the device went tells more
            error.add_note(f"in {backend.name}, while it was closed")
            raise


def _answers(
    asked: Sequence[tuple[str, Any]], work: Callable[[list[Any]], Sequence[R]], tally: Tally
) -> list[tuple[str, Any, R]]:
    """Ask for a batch of (key, item); where that fails, for its halves, so that only the items at fault fail.

    Where a process was lost over it, which costs a start each time, for each item alone.
    """
    try:
        with tally.inside():
            outputs = work([item for _, item in asked])
        if len(outputs) != len(asked):
            raise PluginError(f"{len(outputs)} answers came back for {len(asked)} items")
        return [(key, item, output) for (key, item), output in zip(asked, outputs, strict=True)]
    except (DeviceError, StoreError):  # not the items' fault
        raise
    except Exception as error:
        raise_if_tried()  # nor is this
        if is_lost(error):
            raise DeviceError(f"the device failed in the stage {tally.name!r}: {reason_of(error)}", _GONE) from error
        if len(asked) == 1:
            key = asked[0][0]
            tally.failures[key] = f"{tally.name}: {reason_of(error)}"
            where = place_of(error)
            _LOG.info("%s: no answer for %.80r: %s%s", tally.name, key, reason_of(error), where and f" ({where})")
            return []
        cuts = range(1, len(asked)) if isinstance(error, NoAnswerError) else [len(asked) // 2]
        full = is_full(error)
    # Past the handler: an error holds on to the tensors of the call that it came from.
    if full:
        free_memory()
    parts = pairwise([0, *cuts, len(asked)])
    return [answer for start, end in parts for answer in _answers(asked[start:end], work, tally)]
