"""The bars of a run: which stage of how many, and how long the whole run takes."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from dnd.runtime.progress import Meter


def meter(plan: dict[str, float | None] | None = None, *, quiet: bool = False) -> tuple[Meter, io.StringIO]:
    out = io.StringIO()
    return Meter(Console(file=out, width=100, quiet=quiet), plan=plan), out


def test_stages_are_counted_and_the_whole_run_is_last() -> None:
    shown, out = meter({"exemplars": 10.0, "captions": 20.0})
    with shown:
        for name in ("exemplars", "exemplars kept", "captions"):
            with shown.stage(name, 4) as advance:
                advance(4)
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["stage", "done", "elapsed", "left"]
    assert [line.split("\u2501")[0].strip() for line in lines[1:]] == [
        "1/2 exemplars", "exemplars kept", "2/2 captions", "all stages"
    ]  # fmt: skip
    assert "2/2" in lines[-1].split("\u2501")[-1]


def test_the_time_left_is_that_of_the_stage_and_of_those_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("dnd.runtime.progress.time.monotonic", lambda: now)
    shown, _ = meter({"exemplars": 50.0, "captions": 20.0}, quiet=True)
    assert shown.left == 70
    with shown.stage("exemplars", 10) as advance:
        assert shown.left == 70, "its speed is not known yet"
        advance(2)  # of an earlier run
        now = 104.0
        advance(4)
        assert shown.left == pytest.approx(4 + 20)
    assert shown.left == 20
    assert meter({"exemplars": None, "captions": 20.0})[0].left is None


def test_notes_of_plugins_stand_above_the_bars_and_keep_quiet_with_them() -> None:
    for quiet in (False, True):
        shown, out = meter(quiet=quiet)
        with shown:
            logging.getLogger("dnd.notes").info("vllm: starting [%s]", "x")
        assert ("vllm: starting [x]\n" in out.getvalue()) is not quiet
    logging.getLogger("dnd.notes").info("nobody listens")
