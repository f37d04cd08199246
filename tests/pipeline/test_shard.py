"""A pass in parts: merged, they are what one pass over everything finds, bit for bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from commandline import Outcome
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dnd.errors import NotYetError, UsageError
from dnd.pipeline import execute as execution
from dnd.pipeline.execute import execute
from dnd.pipeline.exemplars import shard as module
from dnd.pipeline.exemplars.shard import Shard, ShardPass, merge
from dnd.pipeline.exemplars.topk import TopKPass
from dnd.probing.prefetch import Loaded

UNITS, KEEP, SAMPLE = 3, 4, 5


def feed(one: TopKPass, images: range, contents: list[int], activations: torch.Tensor) -> None:
    """What `run_pass` does, one image at a time: content 0 cannot be read, equal contents have equal activations."""
    for index in images:
        content = contents[index]
        tensor = torch.zeros(1) if content else None
        if one.is_new(Loaded(index, content, tensor, "" if content else "broken"), f"image {index}"):
            one.add([index], {"layer": activations[content][None]})
    one.position = images.stop


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=40),
    st.integers(1, 5),
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan")]), min_size=13 * UNITS, max_size=13 * UNITS),
)
def test_parts_make_the_whole(contents: list[int], count: int, values: list[float]) -> None:
    activations, n = torch.tensor(values).reshape(13, UNITS), len(contents)
    whole, merged = (TopKPass({"layer": UNITS}, n, KEEP, SAMPLE, 0) for _ in range(2))
    feed(whole, range(n), contents, activations)
    parts = []
    for number in range(1, count + 1):
        images = Shard(number, count).images(n)
        parts.append(ShardPass({"layer": UNITS}, n, KEEP, SAMPLE, 0, images))
        feed(parts[-1], images, contents, activations)
    assert merge(merged, parts)
    top, expected = merged.layers["layer"], whole.layers["layer"]
    sound = expected.broken < 0
    assert torch.equal(top.broken, expected.broken)
    assert torch.equal(top.values[:, sound], expected.values[:, sound])
    assert torch.equal(top.images[:, sound], expected.images[:, sound])
    assert torch.equal(top.floor()[sound], expected.floor()[sound])
    shared = whole.duplicates > sum(one.duplicates for one in parts)  # what equals an earlier part's was counted twice
    assert torch.equal(top.fired, torch.full((UNITS,), -1) if shared else expected.fired)
    assert merged.sample_images() == whole.sample_images()
    order, others = merged.sample_order(), whole.sample_order()
    np.testing.assert_array_equal(merged.sample["layer"][order], whole.sample["layer"][others])
    assert (merged.unreadable, merged.duplicates, merged.done) == (whole.unreadable, whole.duplicates, True)


def test_too_many_duplicates_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLACK", 1)
    contents, activations = [1, 2, 3, 1, 2, 3], torch.arange(12.0).reshape(4, 3)
    parts = [ShardPass({"layer": UNITS}, 6, KEEP, SAMPLE, 0, images) for images in (range(3), range(3, 6))]
    for part, images in zip(parts, (range(3), range(3, 6)), strict=True):
        feed(part, images, contents, activations)
    whole = TopKPass({"layer": UNITS}, 6, KEEP, SAMPLE, 0)
    assert not merge(whole, parts)
    assert not whole.done


def test_a_part_goes_on_from_its_file(tmp_path: Path) -> None:
    contents, activations = list(range(1, 9)), torch.rand(9, UNITS, generator=torch.Generator().manual_seed(0))
    straight, halted = (ShardPass({"layer": UNITS}, 16, KEEP, SAMPLE, 0, range(8)) for _ in range(2))
    feed(straight, range(8), contents, activations)
    feed(halted, range(3), contents, activations)
    halted.save(tmp_path / "part.npz", halted.layers)
    resumed = ShardPass({"layer": UNITS}, 16, KEEP, SAMPLE, 0, range(8)).restore(tmp_path / "part.npz")
    assert (resumed.position, resumed.done) == (3, False)
    feed(resumed, range(3, 8), contents, activations)
    assert resumed.done
    for name in ("layers", "lows"):
        one, other = (getattr(part, name)["layer"] for part in (resumed, straight))
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.images, other.images)
    np.testing.assert_array_equal(resumed.indices, straight.indices)


def test_every_image_is_in_one_part() -> None:
    for n in (0, 1, 7, 100):
        images = [i for number in range(1, 9) for i in Shard(number, 8).images(n)]
        assert images == list(range(n))


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "-1/2", "1/0"])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(UsageError, match="shard"):
        Shard.read(text)


def label(run: Any, out: Path, shard: Shard | None = None) -> Any:
    return execute(run, out, registry=toys.registry(), live=(toys.Net(), toys.preprocess), shard=shard)


def test_two_shards_and_a_merging_run_have_the_labels_of_one_run(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 20)
    Image.open(photos / "001.png").save(photos / "019.png")  # the same image in both shards
    (photos / "005.png").write_bytes(b"no image")
    run = toys.toy_run(photos)
    alone = label(run, tmp_path / "alone" / "run")
    first, second, out = Shard(1, 2), Shard(2, 2), tmp_path / "shared" / "run"
    with pytest.raises(NotYetError, match=r"the images of shard 1/2 are done; 1 of 2 shards are"):
        label(run, first.folder(out), first)
    assert len(label(run, second.folder(out), second).labels) == 2
    label(run, first.folder(out), first)
    toys.MOOD.calls.clear()
    merged = label(run, out)
    assert toys.MOOD.calls == {}
    assert (merged.folder / "labels.csv").read_bytes() == (alone.folder / "labels.csv").read_bytes()


def test_the_command_line_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = Outcome(capsys, "run", "--shard", "1/2")
    assert (without.code, "--shard needs --out" in without.err) == (1, True)
    for more in ((), ("--dry-run",)):
        assert "no shard 3/2" in Outcome(capsys, "run", "--shard", "3/2", "--out", str(tmp_path / "x"), *more).err
    assert "nothing is beside /" in Outcome(capsys, "run", "--shard", "1/2", "--out", "/").err


def test_a_share_lies_beside_the_folder_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "runs" / "run"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    for out in (place, Path(), Path(".."), Path("../run")):
        beside = Path(os.path.abspath(out))
        assert Path(os.path.abspath(Shard(1, 2).folder(out))) == beside.with_name(f"{beside.name}-1-of-2")


def test_a_share_that_waits_for_others_has_not_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = toys.toy_run(toys.make_photos(tmp_path / "photos", 20))
    monkeypatch.setattr("dnd.config.read.read_run", lambda *_, **__: run)
    monkeypatch.setattr(execution, "execute", lambda run, out, *, shard, **_: label(run, out, shard))
    out = tmp_path / "run"
    outcome = Outcome(capsys, "run", "--shard", "1/2", "--out", str(out), "--json")
    assert (outcome.code, "1 of 2 shards are" in outcome.err) == (0, True)
    waiting = "the images of shard 1/2 are done; 1 of 2 shards are"
    folder = tmp_path / "run-1-of-2"
    assert json.loads(outcome.out) == {"run": str(folder), "exit_code": 0, "waiting": waiting}
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["message"]) == ("waiting", waiting)
