"""`dnd bench --dry-run`, and the matrix of full-size models."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli_w
from click.testing import CliRunner

from dnd.bench.matrix import read_matrix
from dnd.cli.main import cli
from dnd.models.weights import Weights
from dnd.plugin.registry import Registry
from dnd.store.toml import parse_toml

FULL = Path(__file__).parents[2] / "benchmarks" / "matrix-full.toml"
SMALL = """
base = "default"
settings.target.units = "0-9"
[axes.scorer]
coverage = {}
mean = { scorer.backend = "mean" }
[combinations.far]
target = { name = "transformers", model = "resnet-50", layers = ["classifier.1"], units = "1,4-6" }
probing.set = "photos"
"""


def lines(matrix: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """First word of each line -> all its words."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DND_CACHE", str(folder / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    Path("matrix.toml").write_text(matrix)
    done = CliRunner().invoke(cli, ["bench", "matrix.toml", "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert not Path("runs").exists(), "nothing runs"
    return {words[0]: words for line in done.stdout.splitlines() if (words := line.split())}


def test_a_dry_run_says_what_each_combination_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    found = lines(SMALL, tmp_path, monkeypatch)
    assert found["coverage"][1:3] == ["10", "?"], "ten units; no rate was measured on this machine"
    assert found["far"][1] == "4", "counted without the target, whose model is not here"
    gigabytes = {name: float(found[name][3]) for name in ("coverage", "mean", "far")}
    assert gigabytes["coverage"] == gigabytes["mean"] > gigabytes["far"] >= 0
    assert "microworld-clip," not in found["mean"]
    assert found["microworld-sdxl"][2:] == ["here", "3"]
    assert found["microworld-clip"][-1] == "2"
    assert found["resnet-50"][-1] == "1"


def test_the_time_is_that_of_the_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnd.pipeline.rates import Rate

    monkeypatch.setattr("dnd.pipeline.plan.find_rate", lambda run, stage, rates: Rate(1.0, 60.0, 100))
    monkeypatch.setattr("dnd.cli.bench_plan.read_rates", lambda path: {"any": Rate(1.0, 60.0, 100)})
    found = lines(SMALL.partition("[combinations")[0], tmp_path, monkeypatch)
    n_images = len(Registry.load().make("probing-set", "microworld", _config("microworld"), None))  # type: ignore[arg-type]
    items = n_images + 10 + 10 * 10 + 10 + 2 * 10 * 8 * 10 + 10
    minutes = round((7 * 60 + items) / 60)
    assert found["mean"][2:4] == [str(minutes), "min"]


def _config(name: str) -> object:
    cls = Registry.load().find("probing-set", name).cls
    assert cls is not None
    return cls.Config()


def test_the_full_size_matrix_is_whole(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    tables = parse_toml(FULL.read_text("utf-8"))
    tables["settings"]["probing"] = {"set": str(tmp_path / "photos")}
    (tmp_path / "matrix.toml").write_text(tomli_w.dumps(tables))
    matrix, registry = read_matrix(tmp_path / "matrix.toml"), Registry.load()
    runs = {one.name: one.run(registry) for one in matrix.combinations}
    known = Weights.default().by_name
    assert all(model in known for run in runs.values() for model in run.models())
    assert len({run.to_toml() for run in runs.values()}) == len(runs) > 60, "no two are one"
    paper = runs[matrix.reference]
    assert (paper.captioner.name, paper.generator.name, paper.scorer.name) == ("blip", "diffusers", "clip-rank")
    assert {run.captioner.name for run in runs.values()} >= {"blip", "blip2", "vlm"}
