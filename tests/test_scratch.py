"""What a run keeps on disk while it is under way: items with their answers, and matrices."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnd.api import Unit
from dnd.errors import DamagedError, StoreError
from dnd.store.ledger import Ledger
from dnd.store.matrix import Scratch


def test_items_are_asked_for_once_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert [ledger.add(key, number) for number, key in enumerate("baab")] == [True, True, False, False]
    assert (len(ledger), ledger.left, list(ledger)) == (2, 2, ["b", "a"])
    assert ledger.item("b") == 0
    assert list(ledger.batches(1)) == [[("b", 0)], [("a", 1)]]
    assert ("a" in ledger, "c" in ledger) == (True, False)


def test_answers_are_found_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for key in "ab":
        ledger.add(key)
    ledger.settle("a", {"one": (1, 2)})
    ledger.settle("c", "never asked for")
    assert ledger["a"] == ledger.get("a") == {"one": (1, 2)}
    assert (ledger.get("b"), ledger.get("c")) == (None, None)
    assert (ledger.lacks("a"), ledger.lacks("b"), ledger.lacks("c")) == (False, True, False)
    assert ledger.left == 1
    with pytest.raises(DamagedError, match="what was stored of 'b' is gone"):
        ledger["b"]


def test_the_first_answer_counts_even_where_it_is_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add("a")
    ledger.settle("a", None)
    ledger.settle("a", "late")
    assert (ledger["a"], ledger.left, ledger.lacks("a")) == (None, 0, False)


@given(st.lists(st.tuples(st.text(max_size=3), st.booleans()), max_size=40), st.integers(1, 7))
def test_batches_are_what_has_no_answer(tmp_path_factory: pytest.TempPathFactory, asked: Any, n: int) -> None:
    ledger = Ledger(tmp_path_factory.getbasetemp())
    for key, answered in asked:
        ledger.add(key, key)
        if answered:
            ledger.settle(key, key)
    open_keys = list(dict.fromkeys(key for key, _ in asked))
    open_keys = [key for key in open_keys if (key, True) not in asked]
    batches = list(ledger.batches(n))
    assert [key for batch in batches for key, _ in batch] == open_keys
    assert all(len(batch) == n for batch in batches[:-1])
    assert ledger.left == len(open_keys)


def test_answers_may_come_while_batches_are_gone_through(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(10):
        ledger.add(str(number), Unit("layer", number))
    seen = []
    for batch in ledger.batches(3):
        for key, unit in batch:
            seen.append(unit.index)
            if unit.index % 2:  # the others fail, and are not asked for again
                ledger.settle(key, unit.index)
    assert (seen, ledger.left) == (list(range(10)), 5)


def test_nothing_of_it_stays_on_disk(tmp_path: Path) -> None:
    ledger, scratch = Ledger(tmp_path / "store"), Scratch(tmp_path / "store")
    ledger.add("a", "b" * 100_000)
    scratch.matrix(10, 10)[3] = np.ones(10, np.float32)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, scratch = Ledger(tmp_path), Scratch(tmp_path)
    matrix = scratch.matrix(1, 4)
    ledger._file.execute("PRAGMA max_page_count = 8")
    with pytest.raises(StoreError, match=r"cannot write a temporary file in .*: database or disk is full") as caught:
        ledger.add("a", "x" * 100_000)
    assert "Free some space" in caught.value.hint
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)

    def write(number: int, data: memoryview, place: int) -> int:
        if place > matrix._start + 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return 8  # half of it

    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(StoreError, match="No space left on device"):
        matrix[0] = np.ones(4, np.float32)


def test_reading_may_need_the_disk_too(tmp_path: Path) -> None:
    """What SQLite's cache cannot hold any more is written when something else is read."""
    ledger = Ledger(tmp_path)
    for number in range(50):
        ledger.add(str(number), "x" * 10_000)
    ledger._file.close()
    ledger._file = Full()  # type: ignore[assignment]
    for read in (lambda: ledger["1"], lambda: ledger.get("1"), lambda: ledger.lacks("1"), lambda: list(ledger)):
        with pytest.raises(StoreError, match="disk I/O error"):
            read()


class Full:
    """A connection that fails where rows are fetched."""

    def execute(self, *given: object) -> Full:
        return self

    def fetchall(self) -> None:
        raise sqlite3.OperationalError("disk I/O error")


def test_matrices_share_a_file_and_nothing_else(tmp_path: Path) -> None:
    rng, scratch = np.random.default_rng(0), Scratch(tmp_path)
    shapes = [(3, 5), (0, 4), (2, 3000)]
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    matrices = [scratch.matrix(*shape) for shape in shapes]
    assert not matrices[2].rows(0, 2).any()
    for matrix, own in zip(matrices, values, strict=True):
        for row, line in enumerate(own):
            matrix[row] = line
    for matrix, own in zip(matrices, values, strict=True):
        assert np.array_equal(matrix.rows(0, len(own)), own)
    assert np.array_equal(matrices[2].part(1, 7, 2345), values[2][1, 7:2345])
    turned = scratch.matrix(1 + 3000, 2)
    matrices[2].turn(np.array([1, 0]), turned, 1)
    assert np.array_equal(turned.rows(1, 3001), values[2][[1, 0]].T)
    assert np.array_equal(turned[11], values[2][[1, 0], 10])
