"""What many latents on many images cost: time of the first stage's parts, and memory.

    python benchmarks/latents.py [--latents 2048 8192 32768] [--images 5000 20000 50000] [--crops 64]

A tiny network over 32x32 images, 16 patches of 32 features, and a TopK autoencoder with 32 of its latents on per patch.
Each size is a process of its own: peak memory is the process's. With `--crops N`, attention crops of N latents too.
What comes after the exemplars goes by unit and by image, whatever a unit is: benchmarks/long.py measures it. Adds to
benchmarks/results/latents.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as `dnd` does (dnd/offline/environment.py)

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from dnd.api import ProbingSet, Unit
from dnd.config.run import Exemplars, LayerSettings
from dnd.pipeline.exemplars.find import find_exemplars
from dnd.store.images import Store
from dnd.target.hooked import HookedTarget

RESULTS = Path(__file__).parent / "results" / "latents.json"
EDGE, PATCH, FEATURES, KEPT = 32, 8, 32, 32


class Noise(ProbingSet):
    """Images of coarse random squares, all different."""

    name = "noise"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def image_name(self, index: int) -> str:
        return f"{index}"

    def open(self, index: int) -> Image.Image:
        cells = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        return Image.fromarray(cells.repeat(EDGE // 8, 0).repeat(EDGE // 8, 1))

    def digest(self) -> str:
        return f"noise {self.count}"


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, FEATURES, PATCH, PATCH), torch.nn.GELU(), torch.nn.Identity()).eval()


def preprocess(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((EDGE, EDGE)))).permute(2, 0, 1).float() / 127.5 - 1


def autoencoder(folder: Path, latents: int) -> str:
    weight = torch.randn(latents, FEATURES, generator=torch.Generator().manual_seed(1)) / FEATURES**0.5
    save_file(
        {"W_enc": weight.T.contiguous(), "b_enc": torch.zeros(latents), "b_dec": torch.zeros(FEATURES)},
        folder / "sae_weights.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps({"architecture": "topk", "k": KEPT}))
    return str(folder)


def peak_mb() -> float:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(lines["VmHWM"].split()[0]) / 1024, 1)


def measure(latents: int, images: int, crops: int) -> dict[str, Any]:
    """In this process."""
    marks: dict[str, float] = {}

    @contextmanager
    def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
        marks.setdefault("pass", time.perf_counter() - began)
        entered, busy = time.perf_counter(), time.process_time()
        yield lambda n: None
        marks[name] = time.perf_counter() - entered
        marks[f"{name} (CPU)"] = time.process_time() - busy

    with tempfile.TemporaryDirectory() as scratch:
        reads = LayerSettings(sae=autoencoder(Path(scratch), latents))
        settings = Exemplars(k=10, crops=crops > 0)
        with HookedTarget(network(), preprocess, ["2"], reads=reads) as hooked:
            hooked.use_batches_of(64)
            before, began, busy = peak_mb(), time.perf_counter(), time.process_time()
            units = [Unit("2", index) for index in range(crops or latents)]
            result = find_exemplars(
                hooked, Noise(images), units, settings, Store(Path(scratch) / "store"), "key",
                seed=0, batch_size=64, progress=lambda n: None, workers=1, stage=stage,
            )  # fmt: skip
            whole, used = time.perf_counter() - began, time.process_time() - busy
        densities = [result.density(unit) or 0.0 for unit in units]
        stored = sum(file.stat().st_size for file in Path(scratch, "store").rglob("*") if file.is_file())
    return {
        "latents": latents,
        "images": images,
        "units": len(units),
        "crops": crops > 0,
        "seconds": {"all": round(whole, 1), **{name: round(value, 1) for name, value in marks.items()}},
        "cpu_seconds": round(used, 1),
        "ms_per_image": round(1000 * marks.get("pass", whole) / images, 2),
        "peak_mb": peak_mb(),
        "peak_before_mb": before,
        "store_mb": round(stored / 2**20, 1),
        "dead": sum(density == 0 for density in densities),
        "density": float(f"{np.mean(densities):.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20000, 50000])
    parser.add_argument("--crops", type=int, default=0, help="crops of so many latents, exemplars of no more")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure(asked.latents[0], asked.images[0], asked.crops)))
        return
    known = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    for latents in asked.latents:
        for images in asked.images:
            size = ["--latents", str(latents), "--images", str(images), "--crops", str(asked.crops), "--here"]
            out = subprocess.run([sys.executable, __file__, *size], check=True, capture_output=True, text=True).stdout
            one = json.loads(out.splitlines()[-1])
            print(json.dumps(one), flush=True)
            same = ("latents", "images", "crops")
            known = [run for run in known if any(run[name] != one[name] for name in same)] + [one]
            known.sort(key=lambda run: (run["crops"], run["latents"], run["images"]))
            facts = {"machine": f"{platform.machine()}, 1 thread", "torch": torch.__version__, "runs": known}
            RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
