"""How the cost of a run grows with its units and with its probing images.

    python benchmarks/scale.py [--units 10 100 1000 10000 50000] [--images 1000 10000 100000]

A target with that many units in layers of at most 1,000, each with a colour of its own and an activation map, small
images of two colours, and small real backends that look at pixels and cost next to nothing, so that what is measured is
the pipeline; numbers of exemplars, crops, candidates and images as in a full run. A process for each size: units grow
at 400 images, images at 100 units. Of each: CPU seconds, the process's peak of memory in use (the libraries alone take
some 300 MB), what each stage took, and the bytes of each part of the store. A long stage also has the time per item in
its first tenth and in its last. Writes benchmarks/results/scale.json as it goes; sizes that are there are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # as `dnd` does (dnd/offline/environment.py)

import numpy as np
import torch
from PIL import Image

import dnd.pipeline.execute
from dnd import api
from dnd.config.read import build_run
from dnd.plugin.registry import Entry, Registry
from dnd.runtime.progress import Meter

RESULTS = Path(__file__).parent / "results" / "scale.json"
A_LAYER, UNITS, IMAGES = 1000, 100, 400
LEVELS = (0, 128, 255)
NAMES = {(r, g, b): f"red{r} green{g} blue{b}" for r in LEVELS for g in LEVELS for b in LEVELS}
COLOURS = {name: colour for colour, name in NAMES.items()}
PALETTE = np.array(list(NAMES), np.float64)


def name_of(image: Image.Image) -> str:
    mean = np.asarray(image, np.float64).reshape(-1, 3).mean(0)
    return NAMES[tuple(int(v) for v in PALETTE[((PALETTE - mean) ** 2).sum(1).argmin()])]


LONG = 1000
"""Items of a stage whose time per item is told."""


class Many(api.Config):
    batch_size: int = 64


class Batched(api.Backend):
    def __init__(self, config: Many, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size


class Captioner(Batched, api.Captioner):
    name, Config = "colours", Many

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return [f"a flat image of {name_of(image)}" for image in images]


class Summarizer(Batched, api.Summarizer):
    name, Config = "colours", Many

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        return [list(dict.fromkeys(c.removeprefix("a flat image of ") for c in r.captions))[:5] for r in requests]


class Generator(Batched, api.Generator):
    name, Config = "colours", Many

    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image.Image]:
        return [flat(COLOURS[r.concept], r.seed) for r in requests]


class Scorer(Batched, api.Scorer):
    name, Config = "colours", Many

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [[float(row.mean()) for row in one.activations] for one in evidence]


def flat(colour: tuple[int, int, int], seed: int) -> Image.Image:
    tint = np.clip(np.array(colour) + np.random.default_rng(seed).integers(-50, 51, 3), 0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(tint, (16, 16, 3)).copy())


class Net(torch.nn.Module):
    """Layers beside each other, each of the image's colours alone."""

    def __init__(self, units: int) -> None:
        super().__init__()
        sizes = [min(A_LAYER, units - start) for start in range(0, units, A_LAYER)]
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(3, size, 1, bias=False) for size in sizes)
        for number, (layer, size) in enumerate(zip(self.layers, sizes, strict=True)):
            weights = torch.randn(size, 3, generator=torch.Generator().manual_seed(number))
            layer.weight.data = torch.nn.functional.normalize(weights)[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(x, 4)
        return torch.stack([layer(small).mean() for layer in self.layers])


def preprocess(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1).float() / 127.5 - 1


class Clocked(Meter):
    """Notes when how much of each stage was done, by a clock that stands still outside of it."""

    times: ClassVar[dict[str, list[tuple[float, int]]]] = {}
    peaks: ClassVar[dict[str, float]] = {}
    """The process's peak when each stage ended, MB."""

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        seen = self.times.setdefault(name, [(0.0, 0)])
        began = time.monotonic() - seen[-1][0]
        with super().stage(name, total) as advance:

            def clocked(n: int) -> None:
                advance(n)
                seen.append((time.monotonic() - began, seen[-1][1] + n))

            yield clocked
        self.peaks[name] = Memory.mb()


def child(units: int, images: int, folder: Path) -> dict[str, Any]:
    kinds = {"captioner": Captioner, "summarizer": Summarizer, "generator": Generator, "scorer": Scorer}
    registry = Registry(Entry(kind, cls.name, cls, "scale", "1", "ok") for kind, cls in kinds.items())
    photos = folder / "photos"
    photos.mkdir()
    for number in range(images):
        rng = np.random.default_rng(number)
        image = Image.new("RGB", (16, 16), tuple(rng.integers(0, 256, 3).tolist()))
        left, top = rng.integers(0, 9, 2).tolist()
        image.paste(tuple(rng.integers(0, 256, 3).tolist()), (left, top, left + 7, top + 7))
        image.save(photos / f"{number:06}.png")
    net = Net(units)
    run = build_run(
        {
            "target": {"name": "Net", "layers": [f"layers.{number}" for number in range(len(net.layers))]},
            "probing": {"set": str(photos)},
            "device": "cpu",
            **{kind: {"backend": "colours"} for kind in kinds},
        },
        registry,
        live_target=True,
    )
    dnd.pipeline.execute.Meter = Clocked  # type: ignore[misc]
    Memory.watch()
    time.sleep(0.2)
    before, began = Memory.mb(), time.process_time()
    result = dnd.pipeline.execute.execute(run, folder / "run", registry=registry, live=(net, preprocess))
    stages = json.loads((folder / "run" / "run.json").read_text())["stages"]
    tenths = {name: tenths_of(times) for name, times in Clocked.times.items() if times[-1][1] >= LONG}
    return {
        "units": len(result.labels),
        "images": images,
        "labelled": sum(label.status == "labelled" for label in result.labels),
        "cpu_seconds": round(time.process_time() - began, 1),
        "mb_before": before,
        "mb": Memory.mb(),
        "mb_after": dict(Clocked.peaks),
        "seconds": {name: round(stage["seconds"], 1) for name, stage in stages.items()},
        "store_mb": sizes_of(folder / ".dnd-store"),
        "run_mb": size_of(folder / "run"),
        "ms_per_item": {name: pair for name, pair in tenths.items() if pair},
    }


def sizes_of(store: Path) -> dict[str, float]:
    """MB of each part of the store: the tables of the stages, and the images themselves."""
    names = {one: one.name.partition("-")[0] if "-" in one.name else "pngs" for one in store.iterdir() if one.is_dir()}
    return {name: size_of(one) for one, name in sorted(names.items(), key=lambda pair: pair[1])}


def size_of(folder: Path) -> float:
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 2)


def tenths_of(times: list[tuple[float, int]]) -> dict[str, float] | None:
    """Milliseconds per item in the first and in the last tenth of a stage."""
    total = times[-1][1]
    if len(times) < 20:
        return None

    def cost(low: float, high: float) -> float:
        part = [(moment, done) for moment, done in times if low * total <= done <= high * total]
        return round(1000 * (part[-1][0] - part[0][0]) / max(1, part[-1][1] - part[0][1]), 3)

    return {"first_tenth": cost(0, 0.1), "last_tenth": cost(0.9, 1)}


class Memory:
    """The most that this process has had in use, looked at 20 times a second (dnd resets the system's own mark)."""

    most = 0

    @classmethod
    def watch(cls) -> None:
        threading.Thread(target=cls._watch, daemon=True).start()

    @classmethod
    def _watch(cls) -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            cls.most = max(cls.most, pages * os.sysconf("SC_PAGE_SIZE"))
            time.sleep(0.05)

    @classmethod
    def mb(cls) -> float:
        return round(cls.most / 1e6, 1)


def measure(units: int, images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", folder, "--units", str(units), "--images", str(images)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="+", default=[10, 100, 1_000, 10_000, 50_000])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.units[0], given.images[0], given.child)))
        return
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    sizes = [(units, IMAGES) for units in given.units] + [(UNITS, images) for images in given.images]
    for units, images in sizes:
        if any((row["units"], row["images"]) == (units, images) for row in rows):
            continue
        rows.append(measure(units, images))
        print(json.dumps(rows[-1]))
        machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "torch": torch.__version__}
        RESULTS.write_text(json.dumps({"version": 1, "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
