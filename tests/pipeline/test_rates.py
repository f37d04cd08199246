"""Rates: what a run measured comes back for the same stage, settings and device, and for no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toys import Net, make_photos, preprocess, registry, toy_run

from dnd.config.read import read_run
from dnd.config.run import Run
from dnd.pipeline import rates
from dnd.pipeline.execute import execute
from dnd.pipeline.rates import Passed, Rate, find_rate, key_of, read_rates, record
from dnd.plugin.registry import Registry
from dnd.runtime.stats import StageStats


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rates.json"


def microworld(*settings: str) -> Run:
    return read_run(None, Registry.load(), options={"device": "cpu"}, settings=settings)


STAGES = ["exemplars", "crops", "captions", "concepts", "images", "activations", "scores"]


def rate_of(run: Run, stage: str, file: Path) -> Rate | None:
    return find_rate(run, stage, read_rates(file))


def test_a_run_leaves_the_rate_of_every_stage(tmp_path: Path, file: Path) -> None:
    run = toy_run(make_photos(tmp_path / "photos"))
    execute(run, tmp_path / "out", registry=registry(), live=(Net(), preprocess))
    found = {stage: rate for stage in STAGES if (rate := rate_of(run, stage, file))}
    assert list(found) == STAGES
    assert len(read_rates(file)) == len(STAGES)
    assert found["exemplars"].items == 24
    stages = json.loads((tmp_path / "out" / "run.json").read_text())["stages"]
    captions = found["captions"]
    assert captions.items == stages["captions"]["computed"]
    assert captions.items / captions.items_per_second <= stages["captions"]["seconds"] + 0.001
    again = file.read_bytes()
    execute(run, tmp_path / "out", registry=registry(), live=(Net(), preprocess))  # all of it is in the store
    assert file.read_bytes() == again


def test_a_rate_counts_for_the_same_settings_and_device_only(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = microworld()
    record(run, [StageStats("captions", computed=100, seconds=30.0, load_seconds=10.0)])
    rate = rate_of(run, "captions", file)
    assert rate == Rate(5.0, 10.0, 100)
    assert rate.seconds(50) == 20.0
    assert rate_of(microworld("captioner.batch_size=2"), "captions", file) == rate
    assert rate_of(microworld("captioner.num_beams=5"), "captions", file) is None
    assert rate_of(run, "concepts", file) is None
    monkeypatch.setattr(rates, "device_name", lambda device: "another")
    assert rate_of(run, "captions", file) is None


def test_a_stage_that_the_run_does_not_have_has_no_rate(file: Path) -> None:
    run = read_run("clip-dissect", Registry.load(), options={"device": "cpu"})
    assert [stage for stage in STAGES if key_of(run, stage) is None] == ["captions", "concepts", "images", "scores"]
    record(run, [StageStats("dissection", computed=5, seconds=1.0)])
    assert read_rates(file) == {}


def test_how_long_a_unit_takes_hangs_on_its_number_of_candidates(file: Path) -> None:
    record(
        microworld(), [StageStats("concepts", computed=10, seconds=5.0), StageStats("images", computed=10, seconds=5.0)]
    )
    other = microworld("concepts.n=3")
    assert rate_of(other, "concepts", file) is None
    assert rate_of(other, "images", file) is not None
    record(microworld(), [StageStats("scores", computed=10, seconds=5.0)])
    assert rate_of(microworld(), "scores", file) is not None
    assert rate_of(microworld("images.n=3"), "scores", file) is None


def test_the_pass_over_the_images_and_the_crops_have_their_own_rates(file: Path) -> None:
    record(microworld(), [StageStats("exemplars", computed=10, seconds=9.0, passed=(100, 4.0))])
    assert [rate and rate.items_per_second for rate in (rate_of(microworld(), s, file) for s in STAGES[:2])] == [25, 2]


def test_a_few_items_do_not_replace_a_measurement_on_many(file: Path) -> None:
    run = microworld()
    for computed, seconds, expected in ((100, 10, 10), (5, 5, 10), (50, 10, 5), (0, 3, 5)):
        record(run, [StageStats("captions", computed=computed, seconds=float(seconds))])
        (rate,) = read_rates(file).values()
        assert rate.items_per_second == expected


def test_the_oldest_rates_go(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(rates, "_MOST", 3)
    for n in range(5):
        record(
            microworld(f"captioner.max_new_tokens={n + 1}"), [StageStats("captions", computed=1, seconds=1 / (n + 1))]
        )
    assert [round(rate.items_per_second) for rate in read_rates(file).values()] == [3, 4, 5]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "rates": []}',
        '{"version": 1, "rates": {}}',
        '{"version": 2, "rates": {"a": {"b": 1}}}',
    ],
)
def test_a_file_of_another_kind_is_started_anew(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert read_rates(file) == {}
    record(microworld(), [StageStats("captions", computed=1, seconds=1.0)])
    assert len(read_rates(file)) == 1


def test_a_cache_that_cannot_be_written_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "taken"))
    record(microworld(), [StageStats("captions", computed=1, seconds=1.0)])


def test_only_images_seen_anew_are_clocked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.5, 103.0])
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(clock))
    advanced: list[int] = []
    passed = Passed(advanced.append)
    passed(30)  # of an earlier run
    passed(8)
    passed(4)
    assert (passed.items, passed.seconds, advanced) == (12, 3.0, [30, 8, 4])
