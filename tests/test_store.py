"""The store: durable rows, images by content, seeds and keys from what identifies an item."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dnd.errors import StoreError
from dnd.scratch import Ledger
from dnd.store import Store, Table, derive_seed, digest_of, stage_key, write_atomic

SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64())])


def rows_of(table: Table) -> dict[str, int]:
    return {row["key"]: row["value"] for row in table.rows()}


def test_rows_come_back(tmp_path: Path) -> None:
    table = Store(tmp_path).table("captions", "k" * 64, SCHEMA)
    assert rows_of(table) == {}
    table.append([{"key": "a", "value": 1}, {"key": "b", "value": 2}])
    table.append([{"key": "c", "value": 3}])
    again = Store(tmp_path).table("captions", "k" * 64, SCHEMA)
    assert rows_of(again) == {"a": 1, "b": 2, "c": 3}
    assert [row["value"] for row in again.rows(keys={"b"})] == [2]
    assert list(again.rows(["key"], {"c"})) == [{"key": "c"}]


def test_a_row_written_twice_answers_once(tmp_path: Path) -> None:
    table, items, answers = Table(tmp_path / "t", SCHEMA), Ledger(tmp_path), []
    table.append([{"key": "a", "value": 1}, {"key": "c", "value": 3}])
    table.append([{"key": "a", "value": 1}, {"key": "a", "value": 1}])
    items.add("a")
    items.add("b")
    table.fill(items, lambda row: answers.append(row["value"]))
    assert answers == [1]
    assert [items.lacks(key) for key in "abc"] == [False, True, False]


def test_compacting_keeps_every_row(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    for number in range(70):
        table.append([{"key": str(number), "value": number}])
    table.compact()
    assert len(list((tmp_path / "t").glob("part-*"))) == 1
    assert rows_of(table) == {str(n): n for n in range(70)}


def test_half_written_files_are_not_rows(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    table.append([{"key": "a", "value": 1}])
    (tmp_path / "t" / ".part-x.parquet.123.tmp").write_bytes(b"PAR1")
    assert rows_of(table) == {"a": 1}


def test_images_are_kept_once_by_content(tmp_path: Path) -> None:
    store = Store(tmp_path)
    red, blue = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 0, 255))
    first = store.put_image(red)
    assert store.put_image(red.copy()) == first
    assert store.put_image(blue) != first
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert first.open().tobytes() == red.tobytes()


def test_images_of_equal_bytes_but_other_shape_differ(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.put_image(Image.new("RGB", (4, 3))) != store.put_image(Image.new("RGB", (3, 4)))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="ab/cdef"):
        Store(tmp_path).picture("abcdef").open()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match="No space left") as caught:
        write_atomic(tmp_path / "x", b"data")
    assert "--out" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    assert derive_seed(0, "images", "red", 1) == derive_seed(0, "images", "red", 1)
    seeds = {derive_seed(run, stage, item) for run in range(5) for stage in "ab" for item in range(20)}
    assert len(seeds) == 200
    assert derive_seed("ab", "c") != derive_seed("a", "bc")


@given(st.lists(st.text()))
def test_seeds_fit_everywhere(parts: list[str]) -> None:
    assert 0 <= derive_seed(*parts) < 2**63


def test_keys_ignore_order_but_not_values() -> None:
    assert stage_key("s", 1, {"a": 1, "b": 2}) == stage_key("s", 1, {"b": 2, "a": 1})
    keys = {
        stage_key("s", 1, {"a": 1}),
        stage_key("s", 2, {"a": 1}),
        stage_key("t", 1, {"a": 1}),
        stage_key("s", 1, {"a": 2}),
    }
    assert len(keys) == 4
    with pytest.raises(ValueError, match="JSON"):
        digest_of(float("nan"))
