"""benchmarks/gpu.py at tiny size on a CPU, and its architectures at full size without weights."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights

from dnd.rates import read_benchmark

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import architectures  # noqa: E402
import gpu  # noqa: E402

CAPTIONS = 4


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "SIZES", {"blip2": ("auto", 2), "llama": ("auto",), "sdxl": ("auto",)})
        patch.setattr(gpu, "CAPTIONS", CAPTIONS)
        arguments = ["--size", "tiny", "--device", "cpu", "--work", str(folder), "--out", str(folder / "out.json")]
        out = gpu.main(arguments)
    assert [path.name for path in folder.iterdir()] == ["out.json"], "the weights are gone"
    found: list[dict[str, Any]] = json.loads(out.read_text("utf-8"))
    rates = read_benchmark(out)
    assert [rate.stage for rate in rates] == ["captions", "captions", "concepts", "images"]
    assert all(rate.items_per_second > 0 for rate in rates)
    return found


def test_every_stage_ran_and_gave_its_memory_back(rows: list[dict[str, Any]]) -> None:
    head, *measured = rows
    assert [(row["backend"], row["chosen"]["batch_size"]) for row in measured] == [
        ("blip2", 16),
        ("blip2", 2),
        ("llama", 32),
        ("sdxl", 16),
    ]
    assert all(row["left_bytes"] == 0 and row["weight_bytes"] > 1e5 for row in measured)
    assert all(row["peak_bytes"] > row["weight_bytes"] and row["load_seconds"] > 0 for row in measured)
    each = CAPTIONS / max(row["items_per_second"] for row in measured if row["stage"] == "captions")
    each += 1 / measured[2]["items_per_second"] + 50 / measured[3]["items_per_second"]
    assert head["units_per_hour"] == pytest.approx(3600 / each, abs=0.1)
    assert head["versions"]["torch"]


def test_tiny_rates_are_not_taken_for_the_real_models(rows: list[dict[str, Any]]) -> None:
    assert not {row["model"] for row in rows[1:]} & set(architectures.MODELS.values())


def test_a_model_that_stays_in_memory_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    monkeypatch.setattr(gpu.Blip2Captioner, "close", lambda self: kept.append(self._model))
    with architectures.lent("blip2", "tiny", "cpu", tmp_path) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RuntimeError, match="blip2 left 2 MB behind"):
            gpu.measure("blip2", "tiny", 2, "cpu")


def test_the_full_size_is_that_of_the_real_checkpoints() -> None:
    """Bytes of the weights in models.lock: float32 of BLIP-2, half precision of the others; headers are the rest."""
    locked = {model["name"]: model["files"] for model in tomllib.loads((ROOT / "models.lock").read_text())["model"]}

    def pinned(name: str, part: str = "") -> int:
        return sum(
            file["size"]
            for file in locked[name]
            if file["path"].startswith(part) and ".safetensors" in file["path"][-12:]
        )

    with init_empty_weights():
        whole = {
            ("blip2-opt-2.7b", 4): architectures.blip2_model("full"),
            ("llama-3.1-8b-instruct", 2): architectures.llama_model("full"),
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


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "no GPU here" in capsys.readouterr().err
