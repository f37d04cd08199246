"""Rates: what a run measured comes back for the same stage, settings and device, and for no other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from toys import Net, make_photos, preprocess, registry, toy_run

from dnd.config.read import read_run
from dnd.config.run import Run
from dnd.errors import UsageError
from dnd.pipeline import rates
from dnd.pipeline.execute import execute
from dnd.pipeline.rates import Passed, Rate, devices_of, find_rate, read_benchmark, read_rates, record
from dnd.plugin.registry import Registry
from dnd.runtime.stats import StageStats


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rates.json"


def microworld(*settings: str) -> Run:
    return read_run(None, Registry.load(), options={"device": "cpu"}, settings=settings)


def test_a_run_leaves_the_rate_of_every_stage(tmp_path: Path, file: Path) -> None:
    run = toy_run(make_photos(tmp_path / "photos"))
    execute(run, tmp_path / "out", registry=registry(), live=(Net(), preprocess))
    found = {rate.stage: rate for rate in read_rates(file)}
    assert list(found) == ["exemplars", "crops", "captions", "concepts", "images", "activations", "scores"]
    assert {rate.device for rate in found.values()} == {devices_of(run)}
    assert found["exemplars"].items == 24
    assert (found["captions"].backend, found["exemplars"].backend) == ("toy", "Net")
    stages = json.loads((tmp_path / "out" / "run.json").read_text())["stages"]
    captions = found["captions"]
    assert captions.items == stages["captions"]["computed"]
    assert captions.items / captions.items_per_second <= stages["captions"]["seconds"] + 0.001
    again = file.read_bytes()
    execute(run, tmp_path / "out", registry=registry(), live=(Net(), preprocess))  # all of it is in the store
    assert file.read_bytes() == again


def test_a_rate_counts_for_the_same_settings_and_device_only(file: Path) -> None:
    run = microworld()
    record(run, [StageStats("captions", computed=100, seconds=30.0, load_seconds=10.0)])
    own, device = read_rates(file), devices_of(run)
    rate = find_rate(run, "captions", device, own, [])
    assert rate is not None
    assert (rate.items_per_second, rate.load_seconds, rate.seconds(50)) == (5.0, 10.0, 20.0)
    assert find_rate(microworld("captioner.batch_size=2"), "captions", device, own, []) == rate
    assert find_rate(microworld("captioner.num_beams=5"), "captions", device, own, []) is None
    assert find_rate(run, "captions", "another GPU", own, []) is None
    assert find_rate(run, "concepts", device, own, []) is None


def test_how_long_a_unit_takes_hangs_on_its_number_of_candidates(file: Path) -> None:
    record(
        microworld(), [StageStats("concepts", computed=10, seconds=5.0), StageStats("images", computed=10, seconds=5.0)]
    )
    other, own = microworld("concepts.n=3"), read_rates(file)
    device = devices_of(other)
    assert find_rate(other, "concepts", device, own, []) is None
    assert find_rate(other, "images", device, own, []) is not None
    record(microworld(), [StageStats("scores", computed=10, seconds=5.0)])
    assert find_rate(microworld("images.n=3"), "scores", device, read_rates(file), []) is None


def test_the_pass_over_the_images_and_the_crops_have_rates_of_their_own(file: Path) -> None:
    record(microworld(), [StageStats("exemplars", computed=10, seconds=9.0, passed=(100, 4.0))])
    assert {rate.stage: rate.items_per_second for rate in read_rates(file)} == {"exemplars": 25.0, "crops": 2.0}


def test_a_few_items_do_not_replace_a_measurement_on_many(file: Path) -> None:
    run = microworld()
    for computed, seconds, expected in ((100, 10, 10), (5, 5, 10), (50, 10, 5), (0, 3, 5)):
        record(run, [StageStats("captions", computed=computed, seconds=float(seconds))])
        (rate,) = read_rates(file)
        assert rate.items_per_second == expected


def test_the_oldest_rates_go(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(rates, "_MOST", 3)
    for n in range(5):
        record(
            microworld(f"captioner.max_new_tokens={n + 1}"), [StageStats("captions", computed=1, seconds=1 / (n + 1))]
        )
    assert [round(rate.items_per_second) for rate in read_rates(file)] == [3, 4, 5]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "rates": []}', '{"version": 1, "rates": [{"a": 1}]}'])
def test_a_file_of_another_kind_is_started_anew(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert read_rates(file) == []
    record(microworld(), [StageStats("captions", computed=1, seconds=1.0)])
    assert len(read_rates(file)) == 1


def test_a_cache_that_cannot_be_written_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "taken"))
    record(microworld(), [StageStats("captions", computed=1, seconds=1.0)])


def test_only_images_seen_anew_are_clocked() -> None:
    told: list[int] = []
    passed = Passed(told.append)
    passed(30)  # of an earlier run
    began = time.monotonic()
    time.sleep(0.02)
    passed(8)
    passed(4)
    assert (passed.items, told) == (12, [30, 8, 4])
    assert 0.02 <= passed.seconds < time.monotonic() - began + 0.01


BENCHMARK = {
    "stage": "images",
    "backend": "sdxl",
    "model": "microworld-sdxl",
    "device": "cuda",
    "device_name": "A Fast One",
    "items_per_second": 2.5,
    "load_seconds": 4.0,
    "peak_bytes": 10**9,
}


def test_a_benchmark_counts_for_its_backend_model_and_device(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(
        json.dumps([{"about": "the machine"}, BENCHMARK, {**BENCHMARK, "stage": "captioner", "items_per_second": None}])
    )
    found = read_benchmark(path)
    assert found == [Rate("images", "sdxl", "microworld-sdxl", "A Fast One", 2.5, 4.0, 0, "gpu.json")]
    rate = find_rate(microworld(), "images", "A Fast One", [], found)
    assert rate is not None
    assert rate.seconds(10) == 8.0
    assert find_rate(microworld(), "images", "A Slow One", [], found) is None
    assert find_rate(microworld("generator.model=sdxl-turbo"), "images", "A Fast One", [], found) is None
    path.write_text(json.dumps([{**BENCHMARK, "holds_for": {"steps": 8, "guidance": 5.0}}]))
    found = read_benchmark(path)
    assert find_rate(microworld(), "images", "A Fast One", [], found) == found[0]
    assert find_rate(microworld("generator.steps=4"), "images", "A Fast One", [], found) is None
    own = [Rate("images", *(rates.key_of(microworld(), "images") or ()), "A Fast One", 9.0, 0.0)]
    mine = find_rate(microworld(), "images", "A Fast One", own, found)
    assert mine is not None
    assert mine.items_per_second == 9.0


@pytest.mark.parametrize("text", ["", "{}", '[{"stage": "images", "items_per_second": 1}]', "[1]"])
def test_a_file_without_rates_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="does not hold rates"):
        read_benchmark(path)
    with pytest.raises(UsageError, match="cannot read the rates"):
        read_benchmark(tmp_path / "nowhere.json")
