"""docs/airgap.md from end to end: one machine that sees a hub, and one that sees nothing but the archive."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import Repository, serve

from dnd.models.weights import Weights
from dnd.store.folders import lock_path

MODELS = ("microworld-blip2", "microworld-llama", "microworld-sdxl", "microworld-clip")
"""Their checkpoints stand for the full-size ones: real architectures, under names that no lock file knows."""


def dnd(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    places = {"DND_MODELS": "store", "DND_CACHE": "cache", "DND_LOCK": "models.lock", "HF_HOME": "hf"}
    return subprocess.run(
        [sys.executable, "-m", "dnd", *arguments],
        env={**os.environ, **{name: str(home / place) for name, place in places.items()}, **environment},
        cwd=home,
        capture_output=True,
        text=True,
    )


def succeed(*arguments: str, home: Path, **environment: str) -> str:
    done = dnd(*arguments, home=home, **environment)
    assert done.returncode == 0, f"dnd {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_file() -> str:
    """The default's, with models that have to be fetched."""
    text = (Path(__file__).parents[2] / "plugins" / "dnd_microworld" / "runfiles" / "default.toml").read_text()
    for name in MODELS:
        text = text.replace(f'"{name}"', f'"{name.replace("microworld", "tiny")}"')
    return text.partition("[labels]")[0]  # whose calibration is for a scorer by its own name


@pytest.fixture
def machines(tmp_path: Path) -> tuple[Path, Path]:
    """Two home folders; on the first, a run file."""
    connected, box = tmp_path / "connected", tmp_path / "box"
    for home in (connected, box):
        home.mkdir()
        shutil.copy(lock_path(), home / "models.lock")
    (connected / "nightly.toml").write_text(run_file())
    return connected, box


def test_from_a_connected_machine_to_an_air_gapped_one(machines: tuple[Path, Path], tmp_path: Path) -> None:
    connected, box = machines
    archive, weights = tmp_path / "box.tar", Weights.default()
    with serve() as hub:
        for name in MODELS:
            folder = weights.folder(name)
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            hub.repos[f"acme/{name}"] = Repository(files)
        for name in MODELS:
            succeed("models", "lock", name.replace("microworld", "tiny"), f"acme/{name}@main", home=connected,
                    HF_ENDPOINT=hub.url)  # fmt: skip
        succeed("models", "fetch", "--runfile", "nightly.toml", home=connected, HF_ENDPOINT=hub.url)
    packed = succeed("models", "pack", str(archive), "--runfile", "nightly.toml", home=connected)

    refused = dnd("models", "unpack", str(archive), home=box)
    assert refused.returncode == 1
    assert "--add" in refused.stderr, "models that the box's lock file does not know"
    unpacked = succeed("models", "unpack", str(archive), "--add", "--into", "carried", home=box)
    digest = next(word for word in packed.split() if len(word) == 64)
    assert digest in unpacked, "both sides print what was packed"

    little = (
        "probing.count=256",
        "concepts.n=2",
        "images.n=2",
        "summarizer.n_samples=4",
        "summarizer.n_extra_samples=0",
    )
    wanted = ["carried/run.toml", "--units", "4", *(word for one in little for word in ("--set", one))]
    report = dnd("doctor", *wanted, "--json", home=box)
    faults = [check for check in json.loads(report.stdout) if check["state"] == "fault"]
    assert (report.returncode, faults) == (0, [])
    succeed("run", *wanted, "--out", "labels", home=box)
    with (box / "labels" / "labels.csv").open() as file:
        assert [(row["unit"], row["label"]) for row in csv.DictReader(file)] == [("4", "dots")]

    weights_of = box / "store" / "tiny-llama" / "model.safetensors"
    weights_of.write_bytes(weights_of.read_bytes()[:-8])
    damaged = dnd("doctor", *wanted, "--out", "again", home=box)
    assert damaged.returncode == 1
    assert "tiny-llama" in damaged.stdout
