"""Runs that come to harm lose nothing: killed, out of disk, with damaged files, in company, under jumping clocks.

The same at full scale: benchmarks/faults.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import faulty
import pytest
import toys
from faulty import BATCH, Job, Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    photos = toys.make_photos(out.parent / "photos", 15)
    outcome = server.run(Job(str(photos), str(out)))
    assert (outcome.code, outcome.message) == (0, "")
    (out / "writes").write_text(str(outcome.writes))
    (out / "seconds").write_text(str(outcome.seconds))
    return out


def photos_of(whole: Path) -> str:
    return str(whole.parent / "photos")


def labels(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "labels.csv").read_bytes(), (folder / "labels.jsonl").read_bytes()


def state(folder: Path) -> str:
    found: str = json.loads((folder / "status.json").read_text())["state"]
    return found


def test_killed_at_random_moments_it_redoes_a_batch_at_most(server: Server, whole: Path, tmp_path: Path) -> None:
    rng, out, asked = random.Random(1), tmp_path / "run", tmp_path / "asked"
    length = float((whole / "seconds").read_text())
    for _ in range(4):
        before = len(asked.read_text().splitlines()) if asked.exists() else 0
        killed = server.run(Job(photos_of(whole), str(out), str(asked), kill_after=rng.uniform(0.2, 0.9) * length))
        assert killed.code in (-9, 0)
        if asked.exists():
            assert faulty.repeats(asked, before) <= BATCH
    before = len(asked.read_text().splitlines())
    assert server.run(Job(photos_of(whole), str(out), str(asked))).code == 0
    assert faulty.repeats(asked, before) <= BATCH
    assert labels(out) == labels(whole)


def test_stopped_by_sigterm_it_redoes_nothing(server: Server, whole: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "run", tmp_path / "asked"
    length = float((whole / "seconds").read_text())
    outcome = server.run(Job(photos_of(whole), str(out), str(asked), term_after=0.6 * length))
    assert (outcome.code, outcome.message) in ((1, "stopped"), (0, ""))
    assert state(out) == ("interrupted" if outcome.code else "done")
    assert server.run(Job(photos_of(whole), str(out), str(asked))).code == 0
    assert faulty.repeats(asked) == 0
    assert labels(out) == labels(whole)
    assert state(out) == "done"


def test_a_disk_that_fills_up_at_any_write_loses_nothing(server: Server, whole: Path, tmp_path: Path) -> None:
    writes = int((whole / "writes").read_text())
    assert writes > 40
    for number in (1, writes // 3, writes - 2):
        out = tmp_path / str(number) / "run"
        outcome = server.run(Job(photos_of(whole), str(out), full_at=number))
        assert outcome.code == 1, number
        assert outcome.message.startswith("StoreError: cannot write"), outcome
        assert "No space left" in outcome.message
        assert number == 1 or state(out) == "failed", "status.json has room for other words"
        assert server.run(Job(photos_of(whole), str(out))).code == 0
        assert labels(out) == labels(whole), number


@pytest.mark.parametrize("fault", ["captioner: out of memory", "summarizer: too few", "scorer: NaN"])
def test_a_backend_that_fails_on_some_units_fails_these_alone(
    server: Server, whole: Path, tmp_path: Path, fault: str
) -> None:
    assert server.run(Job(photos_of(whole), str(tmp_path / "run"), fault=fault)).code == 3
    good, found = (folder.decode().splitlines() for folder in (labels(whole)[0], labels(tmp_path / "run")[0]))
    assert found[2].split(",")[2] == "failed"
    assert found[2].split(",")[-1]
    assert [line for i, line in enumerate(found) if i != 2] == [line for i, line in enumerate(good) if i != 2]


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 0x10
    elif how == "cut short":
        del data[len(data) // 2 :]
    else:
        data.clear()
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "cut short", "emptied"])
def test_a_damaged_file_of_the_store_is_made_again(server: Server, whole: Path, tmp_path: Path, how: str) -> None:
    """Every second file at once: each part and each image is either whole or found out."""
    shutil.copytree(whole.parent / ".dnd-store", tmp_path / ".dnd-store")
    files = sorted(file for file in (tmp_path / ".dnd-store").rglob("*") if file.is_file())
    for file in files[::2]:
        damage(file, how)
    outcome = server.run(Job(photos_of(whole), str(tmp_path / "run")))
    assert (outcome.code, outcome.message) == (0, "")
    assert labels(tmp_path / "run") == labels(whole)
    assert list((tmp_path / ".dnd-store").rglob("damaged-*"))


@pytest.mark.parametrize("stage", ["captions", "activations"])
@pytest.mark.parametrize("how", ["flipped", "cut short", "gone"])
def test_a_damaged_image_is_made_again(server: Server, whole: Path, tmp_path: Path, how: str, stage: str) -> None:
    store = tmp_path / ".dnd-store"
    shutil.copytree(whole.parent / ".dnd-store", store)
    (folder,) = (one for one in store.iterdir() if one.name.startswith(("captioner-", f"{stage}-")))
    shutil.rmtree(folder)  # so that images are opened again
    images = {image: image.read_bytes() for image in (store / "images").rglob("*.png")}
    for image in images:
        if how == "gone":
            image.unlink()
        else:
            damage(image, how)
    outcome = server.run(Job(photos_of(whole), str(tmp_path / "run")))
    assert (outcome.code, outcome.message) == (0, "")
    assert labels(tmp_path / "run") == labels(whole)
    assert {image: image.read_bytes() for image in images} == images


def test_clocks_may_jump(server: Server, whole: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(photos_of(whole), tmp_path / "photos")
    for number, photo in enumerate(sorted(photos.iterdir())):
        os.utime(photo, (0, 0) if number % 2 else (4e9, 4e9))
    for _ in range(2):
        assert server.run(Job(str(photos), str(tmp_path / "run"), clock=True)).code == 0
        assert labels(tmp_path / "run") == labels(whole)


def test_runs_share_a_store_at_the_same_time(server: Server, whole: Path, tmp_path: Path) -> None:
    jobs = [Job(photos_of(whole), str(tmp_path / name)) for name in "abc"]
    assert [outcome.code for outcome in server.together([*jobs, jobs[0]])].count(1) in (0, 1)  # one folder twice
    for job in jobs:
        assert labels(Path(job.out)) == labels(whole)
