"""The store: durable rows, images by content, seeds and keys from what identifies an item."""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dnd.store.table
from dnd.api import derive_seed
from dnd.errors import DamagedError, ItemError, StoreError
from dnd.pipeline.map import complete
from dnd.runtime.stats import StageStats
from dnd.store.files import write_atomic
from dnd.store.images import Store
from dnd.store.keys import digest_of, stage_key
from dnd.store.table import Table

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
    table, answers = Table(tmp_path / "t", SCHEMA), []
    table.append([{"key": "a", "value": 1}, {"key": "c", "value": 3}])
    table.append([{"key": "a", "value": 1}, {"key": "a", "value": 1}])
    found = complete(
        table,
        {"a": 1, "b": 2},
        nullcontext(),
        lambda items: items,
        lambda done: [{"key": key, "value": value} for key, _, value in done],
        lambda row: answers.append((row["key"], row["value"])),
        StageStats("captions"),
        lambda n: None,
        batch_size=lambda: 4,
    )
    assert answers == [("a", 1), ("b", 2)]
    assert list(found) == ["a", "b"]
    assert rows_of(table) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("bad", [set(), {0}, {2}, {0, 1, 2, 3, 4}, {1, 3}])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_backend_is_never_given_an_empty_batch(tmp_path: Path, bad: set[int], size: int) -> None:
    """Whatever fails, and however the batch is divided for it."""

    def work(batch: list[int]) -> list[int]:
        assert batch
        if bad.intersection(batch):
            raise ItemError("cannot do it")
        return batch

    table, stats = Table(tmp_path / "t", SCHEMA), StageStats("captions")
    for items in ({}, {str(n): n for n in range(5)}):
        complete(
            table,
            items,
            nullcontext(),
            work,
            lambda done: [{"key": key, "value": value} for key, _, value in done],
            lambda row: None,
            stats,
            lambda n: None,
            batch_size=lambda: size,
        )
    assert set(rows_of(table).values()) == set(range(5)) - bad
    assert set(stats.failures.values()) == ({"captions: cannot do it"} if bad else set())


def test_columns_have_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    assert len(table.columns({"a"})) == 0
    table.append([{"key": "a", "value": 1}, {"key": "b", "value": 2}])
    table.append([{"key": "c", "value": 3}])
    assert sorted(table.columns({"a", "c", "d"}).to_pylist(), key=lambda row: row["key"]) == [
        {"key": "a", "value": 1},
        {"key": "c", "value": 3},
    ]
    assert table.keys({"a", "c", "d"}) == {"a", "c"}


def test_compacting_keeps_every_row(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    for number in range(70):
        table.append([{"key": str(number), "value": number}])
    table.compact()
    assert len(list((tmp_path / "t").glob("part-*"))) == 1
    assert rows_of(table) == {str(n): n for n in range(70)}


def test_parts_that_are_joined_while_they_are_read_lose_no_row(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    for n in range(70):
        table.append([{"key": str(n), "value": n}])
    reading = table.rows()
    first = next(reading)
    Table(tmp_path / "t", SCHEMA).compact()
    assert {row["key"] for row in (first, *reading)} == {str(n) for n in range(70)}


def test_the_one_sound_part_among_damaged_ones_is_kept(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    for n in range(70):
        table.append([{"key": str(n), "value": n}])
    ((key, value), *_) = rows_of(table).items()
    for part in sorted((tmp_path / "t").glob("part-*"))[1:]:
        part.write_bytes(b"damaged")
    table.compact()
    assert rows_of(table) == {key: value}


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


# --- whatever is done to it --------------------------------------------------------------------------

NAMES = st.sampled_from("abcdef")
STEPS = st.one_of(
    st.tuples(st.just("append"), st.dictionaries(NAMES, st.integers(-(2**63), 2**63 - 1), min_size=1)),
    st.tuples(st.just("forget"), st.sets(NAMES, max_size=3)),
    st.tuples(st.just("spoil"), st.integers(0, 2**30)),
    st.tuples(st.just("litter"), st.binary(max_size=30)),
)


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=8))
def test_a_table_holds_what_was_put_in_or_lacks_it_never_anything_else(steps: list[tuple[str, Any]]) -> None:
    """A dict beside it knows better; of a part whose bytes were changed all rows may be gone, none may be wrong."""
    with tempfile.TemporaryDirectory() as folder:
        table = Store(Path(folder)).table("captions", "k" * 64, SCHEMA)
        known: dict[str, int] = {}
        spoilt = False
        for what, value in steps:
            if what == "append":
                fresh = {key: number for key, number in value.items() if key not in known}
                if fresh:
                    table.append([{"key": key, "value": number} for key, number in fresh.items()])
                known |= fresh
            elif what == "forget":
                table.forget(value)
                known = {key: number for key, number in known.items() if key not in value}
            elif what == "litter":
                table.folder.mkdir(parents=True, exist_ok=True)
                (table.folder / "part-0123.parquet").write_bytes(value)
            elif parts := sorted(table.folder.glob("part-*.parquet")):
                spoilt = True
                data = bytearray(parts[value % len(parts)].read_bytes() or b"\0")
                data[value % len(data)] ^= 0xFF
                parts[value % len(parts)].write_bytes(data)
            found = rows_of(table)
            assert found.items() <= known.items() if spoilt else found == known
            known = found


@settings(max_examples=40)
@given(st.integers(1, 9), st.integers(1, 9), st.binary(min_size=3, max_size=243), st.integers(0, 2**20))
def test_an_image_comes_back_or_is_said_to_be_damaged(width: int, height: int, noise: bytes, at: int) -> None:
    pixels = (noise * (3 * width * height))[: 3 * width * height]
    image = Image.frombytes("RGB", (width, height), pixels)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        picture = store.put_image(image)
        assert picture.open().tobytes() == pixels
        file = store.image_path(picture.digest)
        data = bytearray(file.read_bytes())
        data[at % len(data)] ^= 0x55
        file.write_bytes(data)
        with suppress(DamagedError):
            assert picture.open().tobytes() == pixels


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(tmp_path: Path) -> None:
    store, red = Store(tmp_path), Image.new("RGB", (4, 3), (255, 0, 0))
    path = store.image_path(store.put_image(red).digest)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="was damaged"):
        store.put_image(red).open()
    assert store.put_image(red).open().tobytes() == red.tobytes()


def test_parts_that_another_process_joins_meanwhile_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes them away while they are being read, here all from the third on."""
    table = Table(tmp_path / "t", pa.schema([("key", pa.string()), ("value", pa.binary())]))
    for number in range(70):
        table.append([{"key": str(number), "value": os.urandom(300_000)}])
    reading, read = dnd.store.table._rows_of, 0

    def taken_away(part: Path, **options: Any) -> Any:
        nonlocal read
        read += 1
        if read > 40:
            part.unlink(missing_ok=True)
        return reading(part, **options)

    with monkeypatch.context() as patch:
        patch.setattr("dnd.store.table._rows_of", taken_away)
        table.compact()
    assert read == 41
    assert len(list(table.rows(["key"]))) == 69
    assert not list((tmp_path / "t").glob(".*"))
