"""Batches that follow the device's memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnd_hf import devices
from dnd_hf.batches import Batches


class Work:
    """Gives each number's square, for as many at a time as fit."""

    def __init__(self, room: int) -> None:
        self.room, self.sizes = room, list[int]()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.sizes.append(len(numbers))
        if len(numbers) > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [number * number for number in numbers]


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices whose memory was collected."""
    collected: list[str] = []
    monkeypatch.setattr(devices, "release", collected.append)
    return collected


@given(st.integers(0, 40), st.integers(1, 32), st.integers(1, 32), st.booleans())
def test_every_item_is_answered_once_and_in_order(count: int, size: int, room: int, fill: bool) -> None:
    batches, work = Batches(size, "cuda", fill=fill), Work(room)
    assert batches.map(work, range(count)) == [number * number for number in range(count)]
    done = [one for one in work.sizes if one <= room]
    assert batches.size == size or batches.size <= room
    if fill:
        assert sum(done) - count < max(done, default=1), "only the last batch is filled up"


def test_a_batch_that_does_not_fit_is_halved_for_good(released: list[str]) -> None:
    batches, work = Batches(128, "cuda:1"), Work(36)
    batches.map(work, range(100))
    assert work.sizes == [100, 50, 25, 25, 25, 25]
    assert batches.size == 25
    assert released == ["cuda:1"] * 2
    batches.map(work, range(100))
    assert work.sizes[6:] == [25, 25, 25, 25]
    assert len(released) == 2, "nothing is collected while batches fit"


def test_a_filled_batch_is_halved_from_its_full_size() -> None:
    batches, work = Batches(16, "cuda", fill=True), Work(14)
    assert batches.map(work, range(16)) == [number * number for number in range(16)]
    assert work.sizes == [16, 8, 8]


def test_a_size_that_is_set_meanwhile_counts_for_the_next_batch() -> None:
    batches, sizes = Batches(4, "cpu"), []

    def work(items: list[int]) -> list[int]:
        sizes.append(len(items))
        batches.size = 2
        return items

    batches.map(work, range(8))
    assert sizes == [4, 2, 2]


def test_one_item_that_does_not_fit_and_any_other_error_are_raised() -> None:
    work = Work(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        Batches(4, "cuda").map(work, [1, 2, 3])
    assert work.sizes == [3, 1]

    def broken(items: list[int]) -> Any:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Batches(4, "cuda").map(broken, [1, 2, 3])
