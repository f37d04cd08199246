"""BLIP-2, Llama-3.1-8B and SDXL at full size with random weights, through the real plugins: speed, memory, and
whether each gives all of it back before the next.

    python benchmarks/gpu.py                       # on a GPU: `pytest -m gpu`, then all of it at full size;
                                                   # writes benchmarks/results/gpu-<its name>.json
    python benchmarks/gpu.py --size tiny --device cpu --out tiny.json

Each model is drawn on the device, saved (17 GB on disk at most at a time; --work chooses where), pinned in a
models.lock of its own, and loaded by its plugin from there. `dnd run --dry-run --rates FILE` reads the result: a list
of one object per measurement. The first object tells of the machine instead.

Random weights never end an answer early: BLIP-2's captions have all of their 32 tokens, and Llama's answers 16, about
the mean of a rewritten caption and of a concept. The target and the scorer are not measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import MODELS, lent, model_name
from PIL import Image
from rich.console import Console

from dnd import api
from dnd.memory import device_name
from dnd.weights import Weights
from dnd_blip2 import Blip2Captioner, Blip2Config
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.conversation import Ask
from dnd_llama.prompts import concept_messages, simplify_messages
from dnd_sdxl import SdxlConfig, SdxlGenerator

RESULTS = Path(__file__).parent / "results"
STAGES = {"blip2": "captions", "llama": "concepts", "sdxl": "images"}
SIZES: dict[str, tuple[int | str, ...]] = {"blip2": ("auto", 8, 1), "llama": ("auto", 8), "sdxl": ("auto", 1)}
"""Batch sizes. "auto" first: the first rate of a stage is what `--dry-run` takes."""
CAPTIONS, CONCEPTS, IMAGES = 14, 5, 10
"""A standard unit: 10 exemplars and 4 crops, 5 concepts, 10 images of each. None is shared with another unit."""
SLACK = 256 << 20
"""Bytes that a CUDA library may keep."""
PACKAGES = ("dnd-describe", "torch", "transformers", "diffusers", "accelerate", "bitsandbytes")
WORDS = "a small brown dog and a grey cat lie side by side on a red blanket in front of a wooden fence"


def make(backend: str, size: str, batch: int | str, runtime: api.Runtime) -> Any:
    """The plugin with the settings that are measured."""
    common: dict[str, Any] = {"model": model_name(backend, size), "batch_size": batch}
    if backend == "blip2":
        return Blip2Captioner(Blip2Config(**common, max_new_tokens=32 if size == "full" else 4), runtime)
    if backend == "llama":
        return LlamaSummarizer(LlamaConfig(**common, max_new_tokens=16 if size == "full" else 8), runtime)
    return SdxlGenerator(SdxlConfig(**common, steps=25 if size == "full" else 2), runtime)


def work(backend: Any, first: int) -> tuple[int, Callable[[], Sequence[Any]], float]:
    """(answers, what gives them, items of the stage per answer) for one batch; `first` makes it a new one."""
    batch = int(backend.chosen()["batch_size"])
    if isinstance(backend, Blip2Captioner):
        pixels = np.random.default_rng(first).integers(0, 256, (batch, 64, 64, 3), np.uint8)
        images = [Image.fromarray(one) for one in pixels]
        return batch, lambda: backend.caption(images), 1
    if isinstance(backend, SdxlGenerator):
        requests = [api.ImageRequest("a red star", first + number) for number in range(batch)]
        return batch, lambda: backend.generate(requests), 1
    unit = [simplify_messages(WORDS)] * CAPTIONS
    unit += [concept_messages((WORDS,) * CAPTIONS)] * (CONCEPTS + backend.config.second_asks)
    asks = [Ask(unit[number % len(unit)], first + number, 0.3) for number in range(max(batch, len(unit)))]
    return len(asks), lambda: backend.answer(asks), 1 / len(unit)


def held(device: str) -> int:
    """Bytes that this process holds: on a GPU all of torch's, on a CPU those of models' parameters."""
    gc.collect()
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    return sum(one.nbytes for one in gc.get_objects() if isinstance(one, torch.nn.Parameter))


def peak(device: str) -> int:
    """The most that was taken; on a CPU of the whole process so far."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, size: str, batch: int | str, device: str) -> dict[str, Any]:
    """Load, a first batch, two timed ones, close; RuntimeError where memory stays behind."""
    cuda = device.startswith("cuda")
    runtime = api.Runtime(device=device, weights=Weights.default().resolve)
    runtime.weights(model_name(name, size))  # digests are a run's, not the backend's
    before = held(device)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    backend = make(name, size, batch, runtime)
    began = time.perf_counter()
    backend.load()
    loaded = time.perf_counter() - began
    weights = held(device) - before
    seconds, items = 0.0, 0.0
    for number in range(3):
        count, run, share = work(backend, 1000 * number)
        began = time.perf_counter()
        if len(run()) != count:
            raise RuntimeError(f"{name} left some of {count} items without an answer")
        if number:  # the first warms up
            seconds += time.perf_counter() - began
            items += count * share
    most, chosen = peak(device), dict(backend.chosen())
    backend.close()
    del run
    left = held(device) - before
    if left > (SLACK if cuda else 0):
        raise RuntimeError(f"{name} left {left / 1e6:.0f} MB behind")
    return {
        "stage": STAGES[name],
        "backend": name,
        "model": model_name(name, size),
        "size": size,
        "device": device.partition(":")[0],
        "device_name": device_name(device),
        "batch_size_set": batch,
        "chosen": chosen,
        "items_per_second": float(f"{items / seconds:.4g}"),
        "load_seconds": round(loaded, 2),
        "weight_bytes": weights,
        "peak_bytes": most,
        "left_bytes": left,
    }


def units_per_hour(rows: Sequence[dict[str, Any]]) -> float | None:
    """Of the standard unit with the fastest batches, loading aside; None where a stage was not measured."""
    best = {
        stage: max((r["items_per_second"] for r in rows if r["stage"] == stage), default=0) for stage in STAGES.values()
    }
    if not all(best.values()):
        return None
    each = CAPTIONS / best["captions"] + 1 / best["concepts"] + CONCEPTS * IMAGES / best["images"]
    return round(3600 / each, 1)


def about(size: str, device: str) -> dict[str, Any]:
    """The machine and the versions."""
    driver = None
    if device.startswith("cuda"):
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "about": "random weights of the real architectures; see benchmarks/gpu.py",
        "size": size,
        "device_name": device_name(device),
        "driver": driver,
        "cuda": torch.version.cuda if driver else None,
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if driver else None,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version(), **versions},
        "date": time.strftime("%Y-%m-%d"),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def surroundings(variables: dict[str, str]) -> Any:
    """Environment variables, put back afterwards."""
    old = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def benchmark(
    models: Sequence[str], size: str, device: str, work: Path | None, console: Console
) -> list[dict[str, Any]]:
    """All measurements, the machine first."""
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for name in models:
        console.print(f"{name}: drawing and saving {size} weights")
        with lent(name, size, device, work) as variables, surroundings(variables):
            gc.collect()
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
            for batch in SIZES[name]:
                row = measure(name, size, batch, device)
                rows.append(row)
                console.print(
                    f"  batch {row['chosen']['batch_size']} ({batch}): {row['items_per_second']:g} {row['stage']}/s, "
                    f"peak {row['peak_bytes'] / 1e9:.1f} GB, loaded in {row['load_seconds']:.0f} s"
                )
    head = about(size, device)
    head |= {"units_per_hour": units_per_hour(rows), "seconds": round(time.perf_counter() - began, 1)}
    return [head, *rows]


def run_tests() -> None:
    """Those that need a GPU, at tiny size; the end of this script where one fails."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"], cwd=RESULTS.parent.parent)
    if done.returncode:
        sys.exit("nothing was measured: the tests on the GPU come first (--no-tests leaves them out)")


def main(arguments: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--models", default=",".join(MODELS), help="some of blip2,llama,sdxl")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--work", type=Path, help="where the weights are written meanwhile")
    parser.add_argument(
        "--tests", action=argparse.BooleanOptionalAction, help="run `pytest -m gpu` first  [default: on a GPU]"
    )
    parser.add_argument("--out", type=Path, help="the result; else benchmarks/results/gpu-<name of the device>.json")
    options = parser.parse_args(arguments)
    models = options.models.split(",")
    if unknown := set(models) - set(MODELS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; --size tiny --device cpu tries the script out")
    on_gpu = options.device.startswith("cuda")
    if options.tests if options.tests is not None else on_gpu:
        run_tests()
    rows = benchmark(models, options.size, options.device, options.work, Console(width=160))
    name = re.sub(r"[^a-z0-9]+", "-", device_name(options.device).lower()).strip("-")
    out: Path = options.out or RESULTS / f"gpu-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(out)
    return out


if __name__ == "__main__":
    main()
