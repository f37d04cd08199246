"""A stage as a map: batches are made durable while the next are worked on, and none is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dnd.errors import StoppedError, StoreError
from dnd.pipeline.map import Rows, complete
from dnd.runtime.stats import StageStats
from dnd.store.table import Table

SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64())])
ITEMS = {name: place for place, name in enumerate("abcdef")}
PATIENCE = 60.0
"""Seconds after which a thread that waits for another gives up, so that a fault is no hanging test."""


def plain(done: Any) -> Rows:
    return [{"key": key, "value": value} for key, _, value in done]


def run(
    table: Table,
    work: Callable[[list[int]], list[int]] = list,
    rows: Callable[[Any], Rows] = plain,
    advance: Callable[[int], None] = lambda n: None,
) -> dict[str, int]:
    stats = StageStats("captions")
    found: dict[str, int] = complete(
        table, ITEMS, nullcontext(), work, rows, lambda row: row["value"], stats, advance, batch_size=lambda: 2
    )
    assert stats.items == len(ITEMS)
    return found


def kept(table: Table) -> dict[str, int]:
    return {row["key"]: row["value"] for row in table.rows()}


def test_a_batch_is_written_while_the_next_is_worked_on(tmp_path: Path) -> None:
    at_work = {place: threading.Event() for place in ITEMS.values()}
    beside = []

    def work(batch: list[int]) -> list[int]:
        at_work[batch[0]].set()
        return batch

    def rows(done: Any) -> Rows:
        following = at_work.get(done[-1][1] + 1)
        beside.append(following is None or following.wait(PATIENCE))
        return plain(done)

    table = Table(tmp_path / "t", SCHEMA)
    assert run(table, work, rows) == ITEMS == kept(table)
    assert beside == [True, True, True]


def test_what_waits_to_be_written_is_written_where_the_work_fails_or_is_stopped(tmp_path: Path) -> None:
    def stop(n: int) -> None:
        seen.append(n)
        if len(seen) == 3:  # what was there, and two batches
            raise StoppedError("stopped")

    def fail(batch: list[int]) -> list[int]:
        if 4 in batch:
            raise KeyboardInterrupt
        return batch

    seen: list[int] = []
    stopped, broken = Table(tmp_path / "stopped", SCHEMA), Table(tmp_path / "broken", SCHEMA)
    with pytest.raises(StoppedError):
        run(stopped, advance=stop)
    with pytest.raises(KeyboardInterrupt):
        run(broken, fail)
    assert kept(stopped) == kept(broken) == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert run(stopped) == ITEMS


@pytest.mark.parametrize("lost", [0, 2, 4])
def test_a_batch_that_cannot_be_written_ends_the_stage(tmp_path: Path, lost: int) -> None:
    def rows(done: Any) -> Rows:
        if done[0][1] == lost:
            raise StoreError("the disk is full")
        return plain(done)

    table = Table(tmp_path / "t", SCHEMA)
    with pytest.raises(StoreError, match="the disk is full"):
        run(table, rows=rows)
    assert kept(table) == {name: place for name, place in ITEMS.items() if place < lost}
    assert run(table) == ITEMS
