"""What a long run says of itself: log, heartbeat, `dnd status`, quiet and JSON modes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import toys
from rich.console import Console

import dnd.cli.main
from dnd.errors import StoppedError, StoreError, UsageError
from dnd.pipeline.execute import execute
from dnd.runtime.heartbeat import STATUS, Heartbeat
from dnd.runtime.log import log_to
from dnd.runtime.progress import Meter, Way, spell_seconds
from dnd.runtime.signals import stop_on_signals
from dnd.runtime.stats import StageStats
from dnd.runtime.status import read_status, tell

SMALL = ("exemplars.k=4", "exemplars.sample=12", "images.n=4", "labels.min_auc=0.7")


def toy_target() -> tuple[torch.nn.Module, Any]:
    return toys.Net(), toys.preprocess


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return toys.make_photos(tmp_path / "photos")


@pytest.fixture
def arguments(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("dnd.plugin.registry.Registry.load", toys.registry)
    chosen = [word for kind in ("captioner", "summarizer", "generator", "scorer") for word in (f"--{kind}", "toy")]
    settings = [word for one in SMALL for word in ("--set", one)]
    where = ["--target", "test_status:toy_target", "--layer", "units", "--probe", str(photos), "--device", "cpu"]
    return ["run", "full", *where, *chosen, *settings, "--out", str(tmp_path / "run")]


def invoke(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        dnd.cli.main.main(arguments)
    return int(ended.value.code or 0)


def test_json_is_all_there_is_on_stdout(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["units"] == {"labelled": 3, "uninterpretable": 1}
    assert (found["exit_code"], found["run"]) == (0, str(tmp_path / "run"))
    assert said.err == ""
    assert invoke(["status", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"


def test_quiet_is_quiet_and_the_log_says_what_each_backend_did(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toys.MOOD, "fail_on", {"green"})
    log = tmp_path / "logs" / "run.log"
    assert invoke([*arguments, "--set", "concepts.n=1", "--quiet", "--log", str(log)]) == 3
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    lines = log.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} [A-Z]+ \S", line) for line in lines)
    text = log.read_text()
    assert re.search(
        r'captions: by toy \{"batch_size": 4, "suffix": ""\}: \d+ items, \d+ of them new, \d+ failed', text
    )
    assert "no answer for" in text
    assert "cannot do green" in text
    assert re.search(r"exemplars: 4 units, 4 of them new; 24 images, 0 unreadable", text)
    for stage in ("exemplars", "captions", "concepts", "images", "activations", "scores", "report"):
        assert re.search(rf" {stage}: \d+ items", text), stage
        assert re.search(rf" {stage}: done in ", text), stage
    assert any(line.endswith("INFO done") for line in lines)


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write the log"), log_to(str(tmp_path / "file" / "log")):
        pass


def beating(folder: Path, **facts: Any) -> Path:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    import socket

    base = {"state": "running", "pid": os.getpid(), "host": socket.gethostname(), "updated": now, "started": now}
    (folder / STATUS).write_text(json.dumps({**base, "seconds": 90, "stages": [], **facts}))
    return folder


def test_the_heartbeat_tells_how_far_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnd.runtime.heartbeat.BEAT_SECONDS", 0.02)
    meter, all_stats = Meter(Console(quiet=True)), [StageStats("captions")]
    began = time.monotonic()
    with Heartbeat(tmp_path, meter, all_stats), meter.stage("captions", 100) as advance:
        advance(40)  # done by an earlier run
        time.sleep(0.05)
        advance(20)
        all_stats[0].failures["one"] = "no"
        while (found := read_status(tmp_path))["failures"] != 1 and time.monotonic() < began + 60:
            time.sleep(0.02)
        took = time.monotonic() - began
        assert (found["state"], found["stage"], found["done"], found["total"]) == ("running", "captions", 60, 100)
        assert found["failures"] == 1
        assert found["eta"] == pytest.approx(40 / found["rate"], abs=0.1)
        assert 20 / took < found["rate"] < 20 / 0.05
        assert "60 of 100" in tell("runs/one", found)
        advance(40)
    assert read_status(tmp_path)["state"] == "done"


@pytest.mark.parametrize(
    ("error", "state"),
    [(KeyboardInterrupt(), "interrupted"), (StoppedError("x"), "interrupted"), (OSError("y"), "failed")],
)
def test_the_heartbeat_tells_how_the_run_ended(tmp_path: Path, error: BaseException, state: str) -> None:
    with pytest.raises(type(error)), Heartbeat(tmp_path, Meter(Console(quiet=True)), []):
        raise error
    assert read_status(tmp_path)["state"] == state


def test_an_error_that_says_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Heartbeat(tmp_path, Meter(Console(quiet=True)), []):  # noqa: PT011
        raise ValueError
    assert read_status(tmp_path)["message"] == "ValueError"


def test_a_run_whose_process_is_gone_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert read_status(beating(tmp_path, pid=process.pid))["state"] == "dead"


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_run_that_is_silent_is_dead(tmp_path: Path, hours: int) -> None:
    then = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds")
    assert read_status(beating(tmp_path, updated=then, host="another"))["state"] == "dead"
    assert read_status(beating(tmp_path, updated=then))["state"] == "dead"
    assert read_status(beating(tmp_path, host="another"))["state"] == "running"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"state": 1}', "\x00", '{"state": "running", "pid": 1, "updated": "x"}']
)
def test_a_broken_status_is_an_error_not_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS).write_text(text)
    with pytest.raises(StoreError):
        read_status(tmp_path)


def test_a_failure_is_told_once(tmp_path: Path) -> None:
    """By whoever began the run; as a record of logging, Python would print it a second time."""
    script = f"""
from pathlib import Path
from rich.console import Console
from dnd.runtime.heartbeat import Heartbeat
from dnd.runtime.progress import Meter
try:
    with Heartbeat(Path({str(tmp_path)!r}), Meter(Console(quiet=True)), []):
        raise ValueError("no space")
except ValueError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert read_status(tmp_path)["message"] == "no space"


@pytest.mark.parametrize(
    "facts",
    [
        {"seconds": "x"}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"eta": -1}, {"rate": "x"}, {"pid": 0},
        {"pid": 2**70}, {"stages": 3}, {"stages": [3]}, {"stages": [{}]}, {"units": [1]}, {"units": {"x": "y"}},
        {"stages": [{"name": "x", "done": "many", "total": 1, "seconds": None}]}, {"failures": "x"}, {"host": [1]},
    ],
)  # fmt: skip
def test_a_status_of_another_shape_is_an_error(tmp_path: Path, facts: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=f"no status of a run: {next(iter(facts))}"):
        read_status(beating(tmp_path, **facts))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"pid": ' + "9" * 5000 + "}"])
def test_a_status_that_is_too_much_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / STATUS).write_text(text)
    with pytest.raises(StoreError):
        read_status(tmp_path)


def test_a_pipe_in_the_place_of_the_status_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STATUS)
    with pytest.raises(UsageError, match="no run has begun"):
        read_status(tmp_path)


def test_a_message_does_not_steer_the_terminal(tmp_path: Path) -> None:
    text = tell("run", read_status(beating(tmp_path, message="\x1b]0;x\x07\x9b2J\r\nmore", units={"\x1b[1m": 3})))
    assert [line for line in text.splitlines() if not line.isprintable()] == []
    assert "more" in text


def test_a_folder_without_a_run_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run has begun"):
        read_status(tmp_path)


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_the_second_signal_stops_at_once(kind: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(kind, signal.SIG_DFL)  # SIGHUP is ignored where the tests run under nohup
    try:
        with stop_on_signals() as stopped:
            assert not stopped()
            signal.raise_signal(kind)
            assert stopped()
            assert "once this batch is finished" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(kind)
        assert signal.getsignal(kind) == signal.SIG_DFL
    finally:
        signal.signal(kind, before)


def test_a_terminal_that_is_gone_does_not_keep_a_run_from_stopping(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with stop_on_signals() as stopped, monkeypatch.context() as patch:
        patch.setattr("dnd.runtime.signals.os.write", gone)
        signal.raise_signal(signal.SIGTERM)
        assert stopped()


def test_under_nohup_a_run_goes_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stopped:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stopped_run_leaves_whole_batches_and_goes_on(photos: Path, tmp_path: Path) -> None:
    toys.MOOD.__init__()  # type: ignore[misc]
    run = toys.toy_run(photos, generator={"backend": "toy", "batch_size": 2})
    live = (toys.Net(), toys.preprocess)
    asked = toys.MOOD.calls
    with pytest.raises(StoppedError):
        execute(
            run, tmp_path / "run", registry=toys.registry(), live=live, stopped=lambda: len(asked.get("images", ())) > 1
        )
    assert asked["images"] == [2, 2]
    assert read_status(tmp_path / "run")["state"] == "interrupted"
    assert execute(run, tmp_path / "run", registry=toys.registry(), live=live).exit_code == 0
    assert sum(asked["images"]) == 12


def test_rates_leave_out_what_was_there_before() -> None:
    way = Way("captions", 100)
    way.add(90)
    assert way.rate is None
    assert str(way) == "captions: 90 of 100 (90%)"
    assert [spell_seconds(s) for s in (5.55, 184, 3725)] == ["5.5 s", "3 min 04 s", "1 h 02 min"]
