"""What a long run costs: memory and time per item as the number of units grows.

    python benchmarks/long.py [--units 100000] [--out benchmarks/results/long.json]

A target with that many units in layers of 1,000, each with a colour of its own and an activation map, images of two
colours, and small real backends that look at pixels; numbers of exemplars, crops, candidates and images as in a full
run. Two processes, one with 1,000 units and one with all of them: memory growth is the difference of their peaks. Of
each stage over units, the time per item in its first tenth and in its last, from the moments at which its batches were
durable.
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

FEW = A_LAYER = 1000
LEVELS = (0, 128, 255)
NAMES = {(r, g, b): f"red{r} green{g} blue{b}" for r in LEVELS for g in LEVELS for b in LEVELS}
COLOURS = {name: colour for colour, name in NAMES.items()}
PALETTE = np.array(list(NAMES), np.float64)


def name_of(image: Image.Image) -> str:
    mean = np.asarray(image, np.float64).reshape(-1, 3).mean(0)
    return NAMES[tuple(int(v) for v in PALETTE[((PALETTE - mean) ** 2).sum(1).argmin()])]


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
        self.layers = torch.nn.ModuleList(torch.nn.Conv2d(3, A_LAYER, 1, bias=False) for _ in range(units // A_LAYER))
        for number, layer in enumerate(self.layers):
            weights = torch.randn(A_LAYER, 3, generator=torch.Generator().manual_seed(number))
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


def child(units: int, folder: Path) -> dict[str, Any]:
    kinds = {"captioner": Captioner, "summarizer": Summarizer, "generator": Generator, "scorer": Scorer}
    registry = Registry(Entry(kind, cls.name, cls, "long", "1", "ok") for kind, cls in kinds.items())
    photos = folder / "photos"
    photos.mkdir()
    for number in range(400):
        rng = np.random.default_rng(number)
        image = Image.new("RGB", (16, 16), tuple(rng.integers(0, 256, 3).tolist()))
        left, top = rng.integers(0, 9, 2).tolist()
        image.paste(tuple(rng.integers(0, 256, 3).tolist()), (left, top, left + 7, top + 7))
        image.save(photos / f"{number:04}.png")
    run = build_run(
        {
            "target": {"name": "Net", "layers": [f"layers.{number}" for number in range(units // A_LAYER)]},
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
    before, began = Memory.mb(), time.monotonic()
    result = dnd.pipeline.execute.execute(run, folder / "run", registry=registry, live=(Net(units), preprocess))
    found = {
        "units": len(result.labels),
        "labelled": sum(label.status == "labelled" for label in result.labels),
        "peak_mb": Memory.mb(),
        "peak_before_mb": before,
        "seconds": round(time.monotonic() - began, 1),
    }
    tenths = {name: tenths_of(times) for name, times in Clocked.times.items() if times[-1][1] >= units}
    return {
        **found,
        "peak_mb_after": Clocked.peaks,
        "ms_per_item": {name: pair for name, pair in tenths.items() if pair},
    }


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


def measure(units: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", folder, "--units", str(units)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.units, given.child)))
        return
    few, many = measure(FEW), measure(given.units)
    growth = round(many["peak_mb"] - few["peak_mb"], 1)
    found = {
        "machine": {"python": platform.python_version(), "cpus": os.cpu_count(), "torch": torch.__version__},
        "few": few,
        "many": many,
        "memory_growth_mb": growth,
        "reach": {"memory_growth_mb": 1000},
    }
    text = json.dumps(found, indent=1) + "\n"
    print(text, end="")
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
