"""benchmarks/full_size.py and gpu.py at tiny size on a CPU, and their architectures at full size without weights."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import architectures  # noqa: E402
import full_size  # noqa: E402
import gpu  # noqa: E402
import random_weights  # noqa: E402

TINY = ["--size", "tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def results(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gpu.py writes; the models are measured in this process, one after the other."""
    out = tmp_path_factory.mktemp("results")
    batches = ["--batches", "blip2=auto,2", "--batches", "sdxl:steps=1:guidance=0=1"]
    parts = ",".join(architectures.MODELS)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DND_MODELS", "DND_LOCK", "DND_CACHE"):  # put back afterwards
            patch.setenv(name, "")
        given = ["--parts", parts, *TINY, *batches, "--work", str(store), "--keep", "--here", "--out", str(out)]
        assert gpu.main(given) == 0
    return out


def rows_of(results: Path, architecture: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((results / f"{architecture}.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize("architecture", architectures.MODELS)
def test_every_model_worked_and_gave_its_memory_back(results: Path, architecture: str) -> None:
    stage = full_size.STAGES[architecture.partition("-")[0]]
    head, *rows = rows_of(results, architecture)
    assert head["versions"]["torch"]
    for row in rows:
        assert row["stage"] == stage
        assert row["left_bytes"] == 0
        assert row["weight_bytes"] > 1e5
        assert 0 < row["share_in_models"] < 1
        assert row["items_per_second"] > 0
    assert [row["stage"] for row in rows] == [stage] * len(rows)
    assert head["expected"]["weights"] == pytest.approx(rows[0]["weight_bytes"], rel=0.05)


def test_batches_and_settings_are_those_of_the_command_line(results: Path) -> None:
    assert [(row["batch_size_set"], row["batch_size"]) for row in rows_of(results, "blip2")[1:]] == [
        ("auto", 16),
        (2, 2),
    ]
    assert rows_of(results, "sdxl")[1]["settings"] == {"steps": 1, "guidance": 0}


def test_a_standard_unit_takes_the_time_of_all_its_stages(results: Path) -> None:
    summary, *rows = json.loads((results / "summary.json").read_text("utf-8"))
    rates = {stage: rows_of(results, name)[1]["items_per_second"] for name, stage in full_size.STAGES.items()}
    each = 14 / rates["captions"] + 1 / rates["concepts"] + 50 / rates["images"] + 1 / rates["scores"]
    assert summary["units_per_hour"] == pytest.approx(3600 / each, rel=0.01)
    assert [row["stage"] for row in rows] == list(full_size.STAGES.values())
    assert {row["stage"]: row["items_per_second"] for row in rows} == rates


def test_tiny_rates_are_not_taken_for_the_real_models(results: Path) -> None:
    models = {row["model"] for name in full_size.STAGES for row in rows_of(results, name)}
    assert not models & set(architectures.MODELS.values())


def test_a_batch_that_fails_is_told_and_the_others_are_measured(results: Path, store: Path, tmp_path: Path) -> None:
    given = [*TINY, "--models", "sdxl", "--batches", "sdxl:steps=1=1", "--batches", "sdxl:scheduler=none=1", "--here"]
    with pytest.raises(RuntimeError, match=r"sdxl: batch 1: (?s:.*)scheduler"):
        full_size.main([*given, "--work", str(store), "--keep", "--out", str(tmp_path)])
    _, good, bad = rows_of(tmp_path, "sdxl")
    assert good["items_per_second"] > 0
    assert "scheduler" in bad["error"]
    assert "items_per_second" not in bad


def test_a_model_that_stays_in_memory_is_noticed(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(full_size.Blip2Captioner, "close", lambda self: kept.append(self._model))
    with random_weights.lent("blip2", "tiny", "cpu", store, keep=True) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RuntimeError, match="blip2 left 1 MB behind"):
            full_size.measure("blip2", "tiny", 2, "cpu", 1, {})


def test_labels_are_compared_word_for_word(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("layer,unit,status,label\nl,0,labelled,a red star\nl,1,uninterpretable,\n")
    cpu = gpu.read_labels(tmp_path / "labels.csv")
    assert cpu == {"l/0": "a red star", "l/1": "uninterpretable"}
    assert gpu.compare(cpu, cpu) == {"labels": 2, "equal": 2, "different": {}}
    other = gpu.compare({"l/0": "star", "l/1": "uninterpretable"}, cpu)
    assert (other["equal"], other["different"]) == (1, {"l/0": ["star", "a red star"]})


def test_the_full_size_is_that_of_the_real_checkpoints() -> None:
    """Bytes of the weights in models.lock: float32 of BLIP-2, half precision of the others; headers are the rest."""
    locked = {model["name"]: model for model in tomllib.loads((ROOT / "models.lock").read_text())["model"]}

    def pinned(name: str, part: str = "") -> int:
        return sum(
            file["size"]
            for file in locked[name]["files"]
            if file["path"].startswith(part) and ".safetensors" in file["path"][-12:]
        )

    with init_empty_weights():
        whole = {
            ("blip2-opt-2.7b", 4): architectures.blip2_model("full"),
            ("llama-3.1-8b-instruct", 2): architectures.llama_model("full"),
            ("clip-vit-large-patch14", 4): architectures.clip_model("full"),
        }
        parts = {name: build() for name, build in architectures.sdxl_parts("full").items()}
    for (name, width), model in whole.items():
        model.tie_weights()
        assert width * count(model) == pytest.approx(pinned(name), rel=1e-4)
    assert 4 * count(parts.pop("vae")) == pytest.approx(pinned("sdxl-vae-fp16-fix"), rel=5e-4)
    for name, model in parts.items():
        assert 2 * count(model) == pytest.approx(pinned("sdxl-base-1.0", f"{name}/"), rel=5e-4)


def count(model: Any) -> int:
    """Weights, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def test_files_are_named_as_the_real_ones(store: Path, results: Path) -> None:
    """Those that models.lock has of SDXL, its VAE's included, and of CLIP."""
    from dnd.models.weights import Weights

    lock = Weights.read(ROOT / "models.lock")
    for architecture in ("sdxl", "clip"):
        folder = store / f"random-tiny-{architecture}" / f"tiny-{architectures.MODELS[architecture]}"
        made = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
        named = {file.path for file in lock.find(architectures.MODELS[architecture]).files}
        assert made == {path for path in named if path.endswith(".safetensors")}


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for main, given in ((gpu.main, []), (full_size.main, ["--device", "cuda", "--out", "out"])):
        with pytest.raises(SystemExit):
            main(given)
        assert "no GPU here" in capsys.readouterr().err
