"""Worker processes: the same answers from any number of them, and whatever goes wrong in one stays there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import awkward
import psutil
import pytest
import toys

from dnd import api
from dnd.api import is_device_lost, is_out_of_memory
from dnd.config.read import build_run
from dnd.errors import DeviceError, ItemError, NoAnswerError, PluginError, TooSlowError, UsageError
from dnd.pipeline.execute import execute
from dnd.pipeline.images import IMAGES
from dnd.pipeline.job import SMALL
from dnd.pipeline.map import complete
from dnd.plugin.registry import Entry, Registry
from dnd.results.run import RunFolder
from dnd.runtime.devices import find_devices
from dnd.runtime.ends import Processes
from dnd.runtime.memory import Need
from dnd.runtime.pool import WorkerPool
from dnd.runtime.spread import Spread
from dnd.runtime.stats import StageStats
from dnd.store.images import Store

REQUESTS = [api.ImageRequest(colour, seed) for seed in range(4) for colour in awkward.COLOURS]


def children() -> list[psutil.Process]:
    """Worker processes of ours that are alive."""
    return [child for child in psutil.Process().children(True) if child.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def spread(
    devices: Sequence[str] = ("cpu", "cpu"), timeout: float | None = None, cls: Any = awkward.Generator, **settings: Any
) -> Iterator[WorkerPool]:
    """Generators, loaded, one per device; none may outlive the block."""
    runtime = api.Runtime(devices[0], lambda name: Path(name), tuple(devices))
    proxy = WorkerPool(cls(awkward.FaultConfig(**settings), runtime), devices, timeout)
    try:
        with proxy:
            yield proxy
    finally:
        assert not [" ".join(child.cmdline())[-80:] for child in children()]


def pixels(images: Sequence[Any]) -> list[bytes]:
    return [image.tobytes() for image in images]


def plain() -> list[bytes]:
    runtime = api.Runtime("cpu", lambda name: Path(name))
    return pixels(awkward.Generator(awkward.FaultConfig(), runtime).generate(REQUESTS))


def calls(log: Path, what: str) -> list[tuple[str, int]]:
    """(process, number of items) of each load or call."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(pid, int(n)) for kind, _, pid, n in lines if kind == what]


# --- many devices ------------------------------------------------------------------------------------


def test_two_workers_share_a_batch_and_keep_its_order(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spread(batch_size=2, log=log) as proxy:
        assert proxy.batch_size == 8
        assert proxy.name == "awkward"
        assert pixels(proxy.generate(REQUESTS)) == plain()
    asked = calls(log, "generate")
    assert len({pid for pid, _ in calls(log, "load")}) == 2
    assert [n for _, n in asked] == [2] * 6
    assert {pid for pid, _ in asked} == {pid for pid, _ in calls(log, "load")}
    assert proxy.chosen() == {"device": "cpu"}


def test_the_next_backend_gets_the_processes_that_are_left(tmp_path: Path) -> None:
    logs, ends = [tmp_path / "one", tmp_path / "two"], Processes()
    with closing(ends):
        for log in logs:
            backend = awkward.Generator(awkward.FaultConfig(log=log), api.Runtime("cpu", Path))
            with WorkerPool(backend, ["cpu", "cpu"], ends=ends) as proxy:
                assert pixels(proxy.generate(REQUESTS)) == plain()
        assert len(children()) == 2
        pids = [{pid for pid, _ in calls(log, "load")} for log in logs]
        assert pids[0] == pids[1]
        psutil.Process(int(min(pids[0]))).kill()  # nobody notices before it is wanted
        with WorkerPool(backend, ["cpu", "cpu"], ends=ends) as proxy:
            assert pixels(proxy.generate(REQUESTS)) == plain()
    assert not children()


def test_a_process_that_hangs_is_left_to_nobody(tmp_path: Path) -> None:
    ends, config = Processes(), awkward.FaultConfig(fault="hang")
    with closing(ends):
        backend = awkward.Generator(config, api.Runtime("cpu", Path))
        with WorkerPool(backend, ["cpu"], 0.5, ends) as proxy, pytest.raises(TooSlowError):
            proxy.generate(REQUESTS)
        assert not children()


# --- the cores of a CPU ------------------------------------------------------------------------------


@contextmanager
def over_cores(cls: Any = awkward.Generator, *, workers: bool = True, **settings: Any) -> Iterator[Spread]:
    """A generator that may run three times; nothing may outlive the block."""
    proxy = Spread(cls(awkward.FaultConfig(batch_size=2, **settings), api.Runtime("cpu", Path)), 3, workers=workers)
    try:
        with proxy:
            yield proxy
    finally:
        assert not children()


def wait_for(batch_size: int, proxy: Spread) -> None:
    while proxy.batch_size < batch_size:
        time.sleep(0.01)


def test_a_short_job_starts_no_worker(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with over_cores(log=log) as proxy:
        proxy.left = len(REQUESTS)
        assert pixels(proxy.generate(REQUESTS)) == plain()
        assert proxy.batch_size == 2
    assert calls(log, "load") == [(str(os.getpid()), 0)]


def test_workers_join_a_long_job_and_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setattr("dnd.runtime.spread.WORTH", 0.0)
    with over_cores(log=log) as proxy:
        proxy.left = len(REQUESTS) + 1
        assert pixels(proxy.generate(REQUESTS[:2])) == plain()[:2]
        wait_for(12, proxy)
        assert pixels(proxy.generate(REQUESTS)) == plain()
    loads = {pid for pid, _ in calls(log, "load")}
    assert len(loads) == 3
    assert str(os.getpid()) in loads
    assert {n for _, n in calls(log, "generate")} == {2}


def test_a_job_that_ends_while_workers_start_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnd.runtime.spread.WORTH", 0.0)
    with over_cores() as proxy:
        proxy.left = 100
        proxy.generate(REQUESTS[:2])


def test_what_cannot_run_elsewhere_runs_here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(awkward.Generator):
        """Not importable by its name."""

    tried: list[object] = []
    monkeypatch.setattr("dnd.runtime.spread.WORTH", 0.0)
    monkeypatch.setattr("dnd.runtime.spread.reason_of", tried.append)
    with over_cores(Local) as proxy:
        proxy.left = 100
        proxy.generate(REQUESTS[:2])
        while len(tried) < 2:
            time.sleep(0.01)
        assert pixels(proxy.generate(REQUESTS)) == plain()
    with over_cores(workers=False) as proxy:
        proxy.left = 100
        assert pixels(proxy.generate(REQUESTS)) == plain()
        assert proxy.batch_size == 2


def test_the_whole_job_is_spread_where_the_machine_is_ours_to_use(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `auto` on a CPU; the labels are those of one process."""
    made: list[Spread] = []
    init = Spread.__init__

    def noted(self: Spread, *args: Any, **options: Any) -> None:
        made.append(self)
        init(self, *args, **options)

    monkeypatch.setattr(Spread, "__init__", noted)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr("dnd.runtime.spread.WORTH", 0.0)
    weights = {"small": Need(1, 1, "")}
    monkeypatch.setattr("dnd.pipeline.job.estimate", lambda *_: weights["small"])
    plain_run = label(photos, tmp_path / "one" / "run")
    assert not made, "a CPU that was asked for is used as it is"
    label_auto = label(photos, tmp_path / "auto" / "run", device="auto")
    assert sorted(one.name for one in made) == ["awkward", "awkward", "awkward", "toy"]
    assert (label_auto.folder / "labels.csv").read_bytes() == (plain_run.folder / "labels.csv").read_bytes()
    weights["small"] = Need(SMALL + 1, 1, "")
    label(photos, tmp_path / "large" / "run", device="auto")
    assert len(made) == 4, "a large model uses the cores by itself"


# --- faults ------------------------------------------------------------------------------------------


def test_an_error_comes_back_as_it_was() -> None:
    with spread(fault="refuse", on="green") as proxy:
        with pytest.raises(ItemError, match="cannot do green") as caught:
            proxy.generate(REQUESTS[:4])
        assert caught.value.hint == "a hint"
        assert "_answering" in "".join(caught.value.__notes__)  # the worker's own traceback
        assert pixels(proxy.generate([REQUESTS[0], REQUESTS[2]])) == [plain()[0], plain()[2]]


def test_a_backend_that_ends_its_process_is_an_error_and_hangs_nothing() -> None:
    with spread(("cpu",), fault="exit", on="green") as proxy:
        with pytest.raises(PluginError, match=r"ends the process with SystemExit\(0\)"):
            proxy.generate(REQUESTS[:4])
        assert pixels(proxy.generate([REQUESTS[0]])) == [plain()[0]]


def test_closing_twice_and_loading_again() -> None:
    with spread(("cpu",)) as proxy:
        proxy.close()
        proxy.close()
        assert not [" ".join(child.cmdline())[-80:] for child in children()]
        proxy.load()
        assert len(proxy.generate(REQUESTS[:1])) == 1


def test_a_class_that_another_process_cannot_find() -> None:
    class Local(awkward.Generator):
        pass

    with pytest.raises(PluginError, match="awkward on cpu cannot run in a process of its own"), spread(cls=Local):
        pass


def test_what_cannot_be_loaded_says_why() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), spread(fault="full at load"):
        pass


@pytest.mark.parametrize(
    ("wanted", "count", "expected"),
    [
        ("auto", 0, ("cpu",)),
        ("auto", 1, ("cuda",)),
        ("auto", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", 1, ("cuda",)),
        ("cuda", 2, ("cuda:0", "cuda:1")),
        ("cuda:1", 2, ("cuda:1",)),
        ("cuda:1,cuda:0", 2, ("cuda:1", "cuda:0")),
        ("cpu,cpu", 0, ("cpu", "cpu")),
        ("cuda:0,cuda:2", 2, "no device 'cuda:2'"),
        ("cuda", 0, "no device 'cuda'"),
    ],
)
def test_devices(wanted: str, count: int, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    if isinstance(expected, tuple):
        assert find_devices(wanted) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            find_devices(wanted)


@pytest.mark.parametrize("device", ["cuda,cuda:1", "cpu,cuda:0", "cuda:0,", "gpu", ""])
def test_devices_that_make_no_sense(device: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device"):
        toys.toy_run(toys.make_photos(tmp_path / "photos", 3), device=device)


# --- faults ------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_is_replaced_and_nothing_is_missing(tmp_path: Path) -> None:
    once, log = tmp_path / "once", tmp_path / "log"
    with spread(batch_size=2, fault="die", once=once, log=log) as proxy:
        assert pixels(proxy.generate(REQUESTS)) == plain()
    assert once.exists()
    assert len(calls(log, "load")) in (3, 4)  # both may have died before either left its mark


def test_a_killer_item_costs_itself_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spread(fault="die", on="green", log=log) as proxy:
        with pytest.raises(NoAnswerError, match="killed by SIGKILL"):
            proxy.generate(REQUESTS[:3])
        assert pixels(proxy.generate(REQUESTS[:1])) == plain()[:1]


def test_a_device_that_is_gone_for_good_stops_the_work(tmp_path: Path) -> None:
    with spread(("cpu",), fault="gone", once=tmp_path / "gone") as proxy, pytest.raises(DeviceError) as caught:
        proxy.generate(REQUESTS)
    message = str(caught.value)
    assert message.startswith("awkward on cpu: the device is gone: CUDA error: unspecified launch failure")
    assert "does not load again: the device is gone: CUDA error: no CUDA-capable" in message
    assert "same command" in caught.value.hint


def test_a_device_that_recovers_is_used_again(tmp_path: Path) -> None:
    with spread(("cpu",), fault="lose", once=tmp_path / "once") as proxy:
        assert pixels(proxy.generate(REQUESTS)) == plain()


def test_a_backend_that_always_hangs_stops_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnd.runtime.worker._LOSSES", 2)
    with spread(("cpu",), timeout=0.2, fault="hang") as proxy:
        with pytest.raises(NoAnswerError, match=r"no answer within 0.2 s"):
            proxy.generate(REQUESTS[:1])
        with pytest.raises(DeviceError, match="2 times in a row"):
            proxy.generate(REQUESTS[:1])


def test_an_interrupt_does_not_wait_for_what_is_under_way() -> None:
    with spread(fault="hang") as proxy:
        futures = proxy._threads.map(proxy.generate, [REQUESTS[:1]])
        time.sleep(0.2)
        proxy.close()
        with pytest.raises((NoAnswerError, CancelledError)):  # after the wait there would have been an answer
            list(futures)


def test_closing_while_a_worker_is_being_replaced_leaves_none() -> None:
    for wait in (0.0, 0.002, 0.004, 0.008):
        with spread(("cpu",)) as proxy:
            worker = proxy._workers[0]
            worker.kill()
            thread = threading.Thread(target=_ignoring, args=(worker._start,))
            thread.start()
            time.sleep(wait)
            proxy.close()
            thread.join(20)


def _ignoring(work: Any) -> None:
    with suppress(NoAnswerError):
        work()


def test_workers_die_with_a_parent_that_is_killed() -> None:
    script = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import awkward, psutil
        from dnd import api
        from dnd.runtime.pool import WorkerPool
        backend = awkward.Generator(awkward.FaultConfig(fault="hang"), api.Runtime("cpu", str))
        with WorkerPool(backend, ["cpu", "cpu"]) as proxy:
            print(*(child.pid for child in psutil.Process().children()), flush=True)
            proxy.generate([api.ImageRequest("red", 1)])
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        time.sleep(0.3)
        process.kill()
    end = time.monotonic() + 60
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- in this process ---------------------------------------------------------------------------------


def draw(tmp_path: Path, **settings: Any) -> StageStats:
    """The images of REQUESTS through the core's loop, without workers."""
    backend = awkward.Generator(awkward.FaultConfig(**settings), api.Runtime("cpu", lambda name: Path(name)))
    stats = StageStats("images")
    table = Store(tmp_path / "store").table("images", "0" * 64, IMAGES)
    items = {f"{request.concept} {request.seed}": request for request in REQUESTS}

    def rows(done: Any) -> list[dict[str, Any]]:
        return [{"key": key, "concept": r.concept, "seed": r.seed, "image": ""} for key, r, _ in done]

    try:
        complete(
            table, items, backend, backend.generate, rows, lambda row: row["image"], stats, lambda n: None,
            batch_size=lambda: backend.batch_size,
        )  # fmt: skip
    finally:
        stats.items = len(list(table.rows()))  # what is durable
    return stats


def test_a_lost_device_is_no_items_fault(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="in the stage 'images': CUDA error: unspecified launch failure") as caught:
        draw(tmp_path, fault="lose", on="blue", batch_size=2)
    assert "same command" in caught.value.hint
    assert draw(tmp_path, batch_size=2).computed == len(REQUESTS) - 2  # the first batch was kept


def test_out_of_memory_fails_the_items_that_do_not_fit_alone(tmp_path: Path) -> None:
    stats = draw(tmp_path, fault="full", on="green")
    assert stats.items == 8
    assert set(stats.failures) == {f"green {seed}" for seed in range(4)}
    assert set(stats.failures.values()) == {"images: out of memory"}


def test_out_of_memory_at_load_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="awkward does not fit into the memory of cpu: CUDA out of memory") as caught:
        draw(tmp_path, fault="full at load")
    assert "--device" in caught.value.hint


def test_errors_of_devices_are_told_apart() -> None:
    lost = RuntimeError("CUDA error: device-side assert triggered")
    full = RuntimeError("CUDA error: out of memory")
    assert (is_device_lost(lost), is_out_of_memory(lost)) == (True, False)
    assert (is_device_lost(full), is_out_of_memory(full)) == (False, True)
    wrapped = ItemError("it failed")
    wrapped.__cause__ = lost
    assert is_device_lost(wrapped)
    assert not is_device_lost(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("CUDA"))


# --- whole runs --------------------------------------------------------------------------------------


def registry() -> Registry:
    kinds: dict[str, Any] = {"captioner": awkward.Captioner, "generator": awkward.Generator, "scorer": awkward.Scorer}
    entries = [Entry(kind, cls.name, cls, "awkward", "1", "ok") for kind, cls in kinds.items()]
    return Registry([*entries, *toys.registry().entries])


def label(photos: Path, out: Path, **tables: Any) -> RunFolder:
    base: dict[str, Any] = {
        "target": {"name": "Net", "layers": ["units"], "units": "all"},
        "probing": {"set": str(photos)},
        "exemplars": {"k": 4, "sample": 12},
        "images": {"n": 4},
        "device": "cpu",
        **{kind: {"backend": "awkward"} for kind in ("captioner", "generator", "scorer")},
        "summarizer": {"backend": "toy"},
    }
    run = build_run({**base, **tables}, registry(), live_target=True)
    try:
        return execute(run, out, registry=registry(), live=(toys.Net(), toys.preprocess))
    finally:
        assert not [" ".join(child.cmdline())[-80:] for child in children()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return toys.make_photos(tmp_path / "photos")


def test_a_run_over_two_devices_gives_the_table_of_one(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "one" / "run", batch_size=16)
    result = label(photos, tmp_path / "two" / "run", batch_size=16, device="cpu,cpu")
    for name in ("labels.csv", "labels.jsonl"):
        assert (tmp_path / "two" / "run" / name).read_bytes() == (tmp_path / "one" / "run" / name).read_bytes()
    assert [one.labels[0][0] for one in result.labels[:3]] == ["red", "green", "blue"]
    again = label(photos, tmp_path / "two" / "run", batch_size=16)  # another number of devices: nothing anew
    assert again.exit_code == 0
    stages = json.loads((tmp_path / "two" / "run" / "run.json").read_text())["stages"]
    assert sum(stage["computed"] for stage in stages.values()) == 0


def test_with_a_time_limit_only_what_hangs_fails(photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = label(
        photos,
        tmp_path / "run",
        timeout=10.0,
        generator={"backend": "awkward", "fault": "hang", "on": "green", "log": str(log), "batch_size": 1},
        images={"n": 1},
    )
    assert result.exit_code == 0  # every unit has a candidate left
    by_unit = {one.index: one for one in result}
    assert by_unit[0].labels[0].concept == "red"
    assert [(one.concept, one.reason) for one in by_unit[0].dropped] == [("green", "images: no answer within 10 s")]
    assert by_unit[1].label.status == "uninterpretable"  # a green unit, and green could not be drawn
    lines = [json.loads(line) for line in (tmp_path / "run" / "labels.jsonl").read_text().splitlines()]
    assert lines[0]["dropped"] == [{"concept": "green", "reason": "images: no answer within 10 s"}]
    assert {candidate["concept"] for candidate in lines[0]["candidates"]} == {"red", "blue"}


def test_a_vanished_device_stops_the_run_which_then_goes_on(photos: Path, tmp_path: Path) -> None:
    captioner = {"backend": "awkward", "fault": "lose", "once": str(tmp_path / "once"), "batch_size": 2}
    with pytest.raises(DeviceError, match="stage 'captions'"):
        label(photos, tmp_path / "run", captioner=captioner)
    assert not (tmp_path / "run" / "labels.csv").exists()
    result = label(photos, tmp_path / "run", captioner=captioner)
    assert [one.labels[0][0] for one in result.labels[:3]] == ["red", "green", "blue"]
    assert result.exit_code == 0


def test_an_idle_worker_that_is_killed_is_replaced() -> None:
    with spread() as proxy:
        os.kill(children()[0].pid, signal.SIGKILL)
        assert pixels(proxy.generate(REQUESTS)) == plain()
