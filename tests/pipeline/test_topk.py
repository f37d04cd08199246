"""What a pass has met: as a set knows it, in a fraction of a set's memory."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnd.pipeline.exemplars import topk as seen
from dnd.pipeline.exemplars.topk import Seen, TopKPass
from dnd.probing.prefetch import Loaded

names = st.lists(st.integers(0, 5) | st.integers(2**63 - 2, 2**63 + 2) | st.integers(2**64 - 3, 2**64 - 1))


@given(names, names, st.integers(1, 5))
def test_it_knows_what_a_set_knows(before: list[int], added: list[int], latest: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "_LATEST", latest)
        known, found = set(before), Seen(np.array(before, np.uint64))
        for name in added:
            assert found.add(name) == (name not in known)
            known.add(name)
        assert found.array().dtype == np.uint64
        assert found.array().tolist() == sorted(known)


def test_a_name_takes_eight_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_LATEST", 1024)
    chance = random.Random(0)
    tracemalloc.start()
    found = Seen()
    for _ in range(40_000):
        found.add(chance.getrandbits(64))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 40_000 * 8 + 1024 * 150


def test_a_pass_goes_on_with_the_duplicates_of_a_file_in_any_order(tmp_path: Path) -> None:
    """Files once had them in the order of a set."""

    def topk_pass() -> TopKPass:
        return TopKPass({"a": 1}, 9, 2, 2, 0)

    def image(content: int) -> Loaded:
        return Loaded(0, content, torch.zeros(1))

    first = topk_pass()
    assert [first.is_new(image(content), "x") for content in (2**64 - 1, 7, 7, 0)] == [True, True, False, True]
    first.save(tmp_path / "half", first.layers)
    with np.load(tmp_path / "half") as arrays:
        kept = dict(arrays)
    kept["seen"] = np.array([7, 2**64 - 1, 0], np.uint64)
    with (tmp_path / "half").open("wb") as file:
        np.savez(file, **kept)
    again = topk_pass().restore(tmp_path / "half")
    assert [again.is_new(image(content), "x") for content in (0, 7, 8, 2**64 - 1)] == [False, False, True, False]
    assert again.duplicates == 4
