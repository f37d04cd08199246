"""Runs of the toy world in processes that come to harm: killed, out of disk, with clocks that jump.

A server imports everything once and forks a process for each run, so that a hundred runs take a minute.
    with Server() as server: server.run(Job(photos, out, ...))
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

BATCH = 2


@dataclass(frozen=True)
class Job:
    photos: str
    out: str
    asked: str = ""
    """File that gets a line for every item that a backend is asked for."""
    kill_after: float | None = None
    """Seconds until SIGKILL."""
    term_after: float | None = None
    full_at: int | None = None
    """From this write on, the disk is full."""
    clock: bool = False
    """Every look at the wall clock gives another time, decades apart."""
    fault: str = ""
    """What a backend does wrong on everything green: see `_misbehave`."""


@dataclass(frozen=True)
class Outcome:
    code: int
    """Exit status, negative for a signal."""
    seconds: float
    message: str
    """Of the error, if it was one of dnd's own."""
    writes: int


class Server:
    """Takes jobs by a pipe."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=pipe, stdout=pipe, text=True, env=environment
        )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(self, job: Job) -> Outcome:
        return self.together([job])[0]

    def together(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Outcomes of runs at the same time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(job) for job in jobs]) + "\n")
        self._process.stdin.flush()
        return [Outcome(**one) for one in json.loads(self._process.stdout.readline())]


def repeats(asked: Path, before: int = 0) -> int:
    """How often backends were asked for what they had been asked for already; of the lines from `before` on."""
    lines = asked.read_text().splitlines()
    return len(lines[before:]) - len(set(lines[before:]) - set(lines[:before]))


# --- the server's end --------------------------------------------------------------------------------


def serve() -> None:
    import pyarrow.parquet  # noqa: F401
    import toys  # noqa: F401

    import dnd.pipeline.execute  # noqa: F401

    for line in sys.stdin:
        jobs = [Job(**one) for one in json.loads(line)]
        threads, outcomes = [], [dict[str, Any]() for _ in jobs]
        for job, outcome in zip(jobs, outcomes, strict=True):
            read, write = os.pipe()
            began = time.monotonic()
            number = os.fork()
            if number == 0:
                os.close(read)
                _child(job, write)
            os.close(write)
            watch = threading.Thread(target=_watch, args=(job, number, read, began, outcome))
            threads.append(watch)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(json.dumps(outcomes), flush=True)


def _watch(job: Job, number: int, read: int, began: float, outcome: dict[str, Any]) -> None:
    for after, sent in ((job.kill_after, signal.SIGKILL), (job.term_after, signal.SIGTERM)):
        if after is not None:
            time.sleep(max(0, began + after - time.monotonic()))
            os.kill(number, sent)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status = os.waitpid(number, 0)
    told = json.loads(said) if said else {"message": "", "writes": 0}
    outcome.update(code=os.waitstatus_to_exitcode(status), seconds=time.monotonic() - began, **told)


def _child(job: Job, pipe: int) -> None:
    import torch
    import toys

    from dnd.errors import DndError, StoppedError
    from dnd.pipeline.execute import execute
    from dnd.runtime.signals import stop_on_signals

    torch.set_num_threads(1)
    disk = _Disk(job.full_at)
    code, message = 70, ""
    try:
        if job.clock:
            time.time = lambda: random.uniform(0, 4e9)
        if job.asked:
            _write_down(toys, job.asked)
        if job.fault:
            _misbehave(toys, job.fault)
        backends = {
            k: {"backend": "toy", "batch_size": BATCH} for k in ("captioner", "summarizer", "generator", "scorer")
        }
        run = toys.toy_run(Path(job.photos), batch_size=BATCH, **backends)
        with stop_on_signals() as stopped:
            result = execute(
                run, Path(job.out), registry=toys.registry(), live=(toys.Net(), toys.preprocess), stopped=stopped
            )
        code = result.exit_code
    except StoppedError:
        code, message = 1, "stopped"
    except DndError as error:
        code, message = 1, f"{type(error).__name__}: {error}"
    except BaseException as error:
        message = f"a bug: {error!r}"
    finally:
        os.write(pipe, json.dumps({"message": message, "writes": disk.writes}).encode())
        os._exit(code)


class _Disk:
    """Stands before the files that are written; what is a run's own word on itself is not counted."""

    def __init__(self, full_at: int | None) -> None:
        self.writes, self._full_at = 0, full_at
        plain_open, plain_pwrite = pathlib.Path.open, os.pwrite
        disk = self

        def opened(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
            file = plain_open(path, mode, *rest, **options)
            if mode == "wb" and disk._is_full(counts="status.json" not in path.name):
                file.write = file.writelines = _no_space  # type: ignore[method-assign]
            return file

        def pwrite(*args: Any) -> int:
            return _no_space() if disk._is_full() else plain_pwrite(*args)

        pathlib.Path.open = opened  # type: ignore[method-assign, assignment]
        os.pwrite = pwrite

    def _is_full(self, counts: bool = True) -> bool:
        self.writes += counts
        return self._full_at is not None and self.writes >= self._full_at


def _no_space(*args: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def _write_down(toys: Any, file: str) -> None:
    """Have every backend note what it is asked for, before it answers."""
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    names = {
        "caption": lambda image: str(zlib.crc32(image.tobytes())),
        "summarize": lambda request: f"{request.seed}",
        "generate": lambda request: f"{request.concept} {request.seed}",
        "score": lambda one: str(one.unit),
    }
    for cls in (toys.Captioner, toys.Summarizer, toys.Generator, toys.Scorer):
        method = next(name for name in names if hasattr(cls, name))

        setattr(cls, method, _noting(getattr(cls, method), log, method, names[method]))


def _noting(plain: Any, log: int, method: str, name: Any) -> Any:
    def noted(self: Any, items: Any) -> Any:
        os.write(log, "".join(f"{method} {name(item)}\n" for item in items).encode())
        time.sleep(0.02)  # so that some kills come while a backend is at work
        return plain(self, items)

    return noted


def is_green(item: Any) -> bool:
    import toys
    from PIL import Image

    from dnd import api

    if isinstance(item, Image.Image):
        return toys.colour_of(item) == "green"
    if isinstance(item, api.SummaryRequest):
        return "green" in item.captions[0]
    return item.concept == "green" if isinstance(item, api.ImageRequest) else item.unit.index == 1


FAULTS = {
    "captioner raises": ("Captioner", "caption", RuntimeError("no")),
    "captioner: out of memory": ("Captioner", "caption", MemoryError()),
    "captioner: empty text": ("Captioner", "caption", " "),
    "captioner: absurdly long text": ("Captioner", "caption", "x" * 1_000_000),
    "captioner: no text": ("Captioner", "caption", 7),
    "captioner: too few": ("Captioner", "caption", ...),
    "summarizer raises": ("Summarizer", "summarize", ValueError("no")),
    "summarizer: out of memory": ("Summarizer", "summarize", RuntimeError("CUDA out of memory. Tried to allocate")),
    "summarizer: no candidates": ("Summarizer", "summarize", []),
    "summarizer: absurdly long text": ("Summarizer", "summarize", ["y" * 1_000_000]),
    "summarizer: too few": ("Summarizer", "summarize", ...),
    "scorer raises": ("Scorer", "score", KeyError("no")),
    "scorer: out of memory": ("Scorer", "score", MemoryError()),
    "scorer: NaN": ("Scorer", "score", [float("nan")] * 3),
    "scorer: infinite": ("Scorer", "score", [float("inf")] * 3),
    "scorer: too few": ("Scorer", "score", ...),
}
"""Name -> class, method, and what is raised, or answered instead of the right thing; ... leaves it out."""


def _misbehave(toys: Any, fault: str) -> None:
    name, method, bad = FAULTS[fault]
    cls = getattr(toys, name)
    plain = getattr(cls, method)

    def wrong(self: Any, items: Any) -> Any:
        if isinstance(bad, Exception) and any(map(is_green, items)):
            raise bad
        answers = zip(items, plain(self, items), strict=True)
        return [bad if is_green(item) else good for item, good in answers if bad is not ... or not is_green(item)]

    setattr(cls, method, wrong)


if __name__ == "__main__":
    serve()
