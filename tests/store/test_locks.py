"""One process at a time in a run folder; any number in one store."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import toys

from dnd.errors import StoreError, UsageError
from dnd.pipeline.execute import execute
from dnd.store.locks import LOCK, HeldError, held, only_here


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder until its stdin closes."""
    code = (
        "import sys; from pathlib import Path; from dnd.store.locks import only_here\n"
        "with only_here(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_the_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 3)
    with holder(tmp_path / "run") as process:
        with pytest.raises(UsageError, match=f"at work in .*: process {process.pid} on .*, since 20") as caught:
            execute(
                toys.toy_run(photos), tmp_path / "run", registry=toys.registry(), live=(toys.Net(), toys.preprocess)
            )
        assert "--out" in caught.value.hint
        assert [file.name for file in (tmp_path / "run").iterdir()] == [LOCK]
    with only_here(tmp_path / "run"):
        pass


def test_the_same_process_cannot_have_it_twice(tmp_path: Path) -> None:
    with only_here(tmp_path), pytest.raises(UsageError, match=f"process {os.getpid()} "), only_here(tmp_path):
        pass


def test_a_dead_holder_blocks_nobody(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with only_here(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_lock_that_its_holder_took_away_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, path = fcntl.flock, tmp_path / LOCK

    def late(file: IO[str], how: int) -> None:
        monkeypatch.setattr("fcntl.flock", plain)
        path.unlink()
        plain(file, how)

    monkeypatch.setattr("fcntl.flock", late)
    with held(path), pytest.raises(HeldError, match=f"process {os.getpid()} "), held(path):
        pass


def test_what_a_dead_holder_wrote_is_written_over(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text('{"pid": 1, "host": "another", "since": 0}')
    with held(tmp_path / LOCK), pytest.raises(HeldError, match=f"process {os.getpid()} "), held(tmp_path / LOCK):
        pass


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EACCES])
@pytest.mark.parametrize("text", ["", "3", "{}", '{"since": "x"}'])
def test_a_holder_that_does_not_say_who_it_is(
    tmp_path: Path, number: int, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("fcntl.flock", refuse)
    (tmp_path / LOCK).write_text(text)
    with pytest.raises(HeldError, match="has not said which"), held(tmp_path / LOCK):
        pass


def test_a_full_disk_or_a_lock_taken_away_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dnd.store.locks.json.dump", full)
    with held(tmp_path / LOCK):
        with pytest.raises(HeldError), held(tmp_path / LOCK):
            pass
        (tmp_path / LOCK).unlink()


def test_a_folder_that_nothing_came_into_goes_again(tmp_path: Path) -> None:
    with only_here(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()
    with only_here(tmp_path / "used"):
        (tmp_path / "used" / "file").touch()
    assert (tmp_path / "used" / "file").exists()
    (tmp_path / "there").mkdir()
    with only_here(tmp_path / "there"):
        pass
    assert (tmp_path / "there").exists()


@pytest.mark.parametrize("problem", ["a file", "no locks", "read-only"])
def test_a_folder_that_cannot_be_locked(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if problem == "a file":
        (tmp_path / "run").touch()
    elif problem == "no locks":

        def refuse(*arguments: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.flock", refuse)
    else:

        def read_only(*arguments: object, **options: object) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(StoreError, match=r"cannot use the run folder .*run") as caught, only_here(tmp_path / "run"):
        pass
    assert "--out" in caught.value.hint


def test_two_runs_at_once_may_share_a_store(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 60)
    script = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import toys
        from dnd.pipeline.execute import execute
        captioner = {{"backend": "toy", "batch_size": 1}}  # many small parts, which each run joins as it ends the stage
        run = toys.toy_run(Path({str(photos)!r}), exemplars={{"k": 15, "sample": 12}}, captioner=captioner)
        print("ready", flush=True)
        sys.stdin.readline()
        execute(run, Path(sys.argv[1]), registry=toys.registry(), live=(toys.Net(), toys.preprocess))
        """
    )
    run = toys.toy_run(photos, exemplars={"k": 15, "sample": 12})
    execute(run, tmp_path / "alone" / "run", registry=toys.registry(), live=(toys.Net(), toys.preprocess))
    command = [sys.executable, "-c", script]
    outs = [tmp_path / "one", tmp_path / "two"]
    running = [
        subprocess.Popen([*command, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for out in outs
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=300)
    assert [process.returncode for process in running] == [0, 0]
    alone = (tmp_path / "alone" / "run" / "labels.csv").read_text()
    assert "green" in alone
    assert [(out / "labels.csv").read_text() for out in outs] == [alone, alone]
