"""What the probing pass costs: its throughput beside a bare forward loop, and its memory as the set grows.

    python benchmarks/probing.py [--images 256] [--out benchmarks/results/probing.json]

Throughput: JPEG files read, decoded, prepared, pooled and ranked, against the same module over the same batches,
already in memory; the two take turns batch-sized pieces apart, so that other load on the machine hits both.
Memory: the peak of a process that probes 20,000 images less that of one that probes 2,000.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as dnd does (dnd/offline/environment.py), before torch is imported

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from dnd.pipeline.exemplars.topk import TopKPass, run_pass
from dnd.probing.sets import FolderSet
from dnd.target.hooked import HookedTarget
from dnd.target.preprocess import stack

BATCH = 32
ROUNDS = 4


def network(width: int) -> torch.nn.Sequential:
    """A plain CNN; `width` 32 is about 0.7 GFLOP for a 128x128 image, the order of a small modern network."""
    torch.manual_seed(0)
    layers: list[torch.nn.Module] = []
    for inputs, outputs, stride in (
        (3, width, 2),
        (width, 2 * width, 1),
        (2 * width, 4 * width, 2),
        (4 * width,) * 2 + (1,),
    ):
        layers += [torch.nn.Conv2d(inputs, outputs, 3, stride, 1), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU(True)]
    return torch.nn.Sequential(*layers).eval()


def preprocess(side: int) -> Any:
    def prepare(image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float32)
        return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)

    return prepare


def make_images(folder: Path, n: int, side: int, suffix: str) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(n):
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:06}.{suffix}")


def throughput(folder: Path, scratch: Path) -> dict[str, float]:
    """Images per second of the pass and of the bare loop."""
    probing = FolderSet(folder)
    rates: dict[str, list[float]] = {"bare": [], "pass": []}
    work: dict[str, list[float]] = {"bare": [], "pass": []}
    with HookedTarget(network(32), preprocess(128), ["3", "9"], batch_size=BATCH) as hooked:
        inputs = [hooked.prepare(probing.open(index)) for index in range(len(probing))]
        batches = [stack(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
        module = network(32)
        for turn in range(ROUNDS):
            for name in ("bare", "pass")[:: 1 if turn % 2 else -1]:
                began, worked = time.perf_counter(), time.process_time()
                if name == "bare":
                    with torch.no_grad():
                        for batch in batches:
                            module(batch)
                else:
                    topk_pass = TopKPass(hooked.layer_sizes(), len(probing), 10, 256, 0)
                    run_pass(topk_pass, hooked, probing, scratch / "state.npz", 2, lambda n: None)
                rates[name].append(len(probing) / (time.perf_counter() - began))
                work[name].append((time.process_time() - worked) / len(probing) * 1000)
    found = {f"{name}_images_per_s": statistics.median(values) for name, values in rates.items()}
    found |= {f"{name}_cpu_ms_per_image": statistics.median(values) for name, values in work.items()}
    return {"ratio": found["pass_images_per_s"] / found["bare_images_per_s"], **found}


def peak(folder: Path, n: int) -> float:
    """Peak memory in MB of a process of its own that probes the first n images of a folder."""
    command = [sys.executable, __file__, "--peak-of", str(n), "--folder", str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def probe(folder: Path, n: int) -> None:
    probing = FolderSet(folder)
    del probing.paths[n:]
    with (
        HookedTarget(network(8), preprocess(32), ["3", "9"], batch_size=64) as hooked,
        tempfile.TemporaryDirectory() as scratch,
    ):
        topk_pass = TopKPass(hooked.layer_sizes(), len(probing), 10, 256, 0)
        run_pass(topk_pass, hooked, probing, Path(scratch) / "state.npz", 2, lambda n: None)
    # Not ru_maxrss, which a child inherits from the process that started it.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="images for the throughput")
    parser.add_argument("--many", type=int, default=20_000, help="images for the larger peak; the smaller has a tenth")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probing.json")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak_of:
        return probe(asked.folder, asked.peak_of)
    with tempfile.TemporaryDirectory() as scratch:
        make_images(Path(scratch) / "photos", asked.images, 256, "jpg")
        found: dict[str, Any] = dict(throughput(Path(scratch) / "photos", Path(scratch)))
        make_images(Path(scratch) / "many", asked.many, 32, "ppm")
        few, many = (peak(Path(scratch) / "many", n) for n in (asked.many // 10, asked.many))
    found |= {"peak_mb": {str(asked.many // 10): few, str(asked.many): many}, "peak_difference_mb": many - few}
    found = {name: round(value, 2) if isinstance(value, float) else value for name, value in found.items()}
    found["reach"] = {"ratio": ">= 0.8", "peak_difference_mb": "< 150"}
    found["machine"] = {
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gomp_spincount": os.environ["GOMP_SPINCOUNT"],
    }
    table = Table("what", "measured", "reach")
    table.add_row("pass / bare forward loop", f"{found['ratio']}", "0.8 or more")
    table.add_row(
        f"peak of {asked.many} over {asked.many // 10} images", f"{found['peak_difference_mb']} MB", "under 150 MB"
    )
    Console().print(table)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(found, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
