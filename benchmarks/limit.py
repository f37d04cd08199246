"""How much of a run's CPU time is spent inside the models.

    python benchmarks/limit.py [--units 0-70]

The default run in this process, one thread, an empty store. Time inside the outermost call of a model (a forward pass,
a `generate`, a pipeline) is what the bare models cost on the same inputs; beside it stands the CPU time of the
whole process, start-up included. Inputs are counted, and how many of them are distinct: `share_of_distinct` leaves out
what a model was given twice. Beside it, what is neither a model nor the pipeline: importing libraries, and rendering
the probing scenes, which other probing sets read from disk. Writes benchmarks/results/limit.json.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import hashlib
import json
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "limit.json"
GOAL = 0.85


@dataclass
class Model:
    calls: int = 0
    inputs: int = 0
    cpu_seconds: float = 0.0
    digests: set[bytes] = field(default_factory=set)


class Watch:
    """Times outermost calls, each on the thread that makes it."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.own_seconds = 0.0
        """Of the watch itself."""
        self.others: dict[str, float] = {}
        self._lock = threading.Lock()
        self._inside = threading.local()

    def wrap(self, cls: Any, name: str) -> None:
        plain: Callable[..., Any] = getattr(cls, name)

        @wraps(plain)
        def timed(model: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "here", False):
                return plain(model, *args, **kwargs)
            began = time.thread_time()
            found = self.models.setdefault(type(model).__name__, Model())
            self._count(found, args, kwargs)
            self._inside.here, start = True, time.thread_time()
            self.own_seconds += start - began
            try:
                return plain(model, *args, **kwargs)
            finally:
                self._inside.here = False
                found.cpu_seconds += time.thread_time() - start

        setattr(cls, name, timed)

    def time(self, cls: Any, name: str) -> None:
        """Time a method that is no model's."""
        plain: Callable[..., Any] = getattr(cls, name)

        @wraps(plain)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return plain(*args, **kwargs)
            finally:
                with self._lock:
                    self.others[cls.__name__] = self.others.get(cls.__name__, 0.0) + time.thread_time() - began

        setattr(cls, name, timed)

    def _count(self, found: Model, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A pipeline's prompts, each with its seed; else the rows of the largest tensor."""
        import torch

        found.calls += 1
        if isinstance(kwargs.get("prompt"), list):
            asked = zip(kwargs["prompt"], kwargs["generator"], strict=True)
            names = [f"{prompt} {generator.initial_seed()}".encode() for prompt, generator in asked]
            found.inputs += len(names)
            found.digests |= {hashlib.blake2b(name, digest_size=12).digest() for name in names}
            return
        tensors = [value for value in [*args, *kwargs.values()] if isinstance(value, torch.Tensor) and value.ndim]
        if tensors:
            rows = max(tensors, key=torch.Tensor.numel).detach().float().numpy()
            found.inputs += len(rows)
            found.digests |= {hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in rows}


def measure(units: str, folder: Path) -> dict[str, Any]:
    from dnd.offline.environment import collect_rarely

    collect_rarely()  # as the command does
    import torch
    from diffusers import StableDiffusionXLPipeline
    from transformers import GenerationMixin

    from dnd.config.read import read_run
    from dnd.offline.block import offline
    from dnd.pipeline.execute import execute
    from dnd.plugin.registry import Registry

    watch = Watch()
    for cls, name in (
        (torch.nn.Module, "__call__"),
        (GenerationMixin, "generate"),
        (StableDiffusionXLPipeline, "__call__"),
    ):
        watch.wrap(cls, name)
    with offline():
        registry = Registry.load()
        run = read_run("default", registry, options={"target.units": units, "device": "cpu"})
        scenes = registry.find("probing-set", "microworld").cls
        watch.time(scenes, "open")
        imports = time.process_time()
        result = execute(run, folder / "run", registry=registry)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    whole = sum(one.ru_utime + one.ru_stime for one in used) - watch.own_seconds
    inside = sum(model.cpu_seconds for model in watch.models.values())
    distinct = sum(m.cpu_seconds * len(m.digests) / m.inputs for m in watch.models.values() if m.inputs)
    return {
        "units": len(result.labels),
        "cpu_seconds": round(whole, 1),
        "inside_models": round(inside, 1),
        "share": round(inside / whole, 3),
        "share_of_distinct": round(distinct / whole, 3),
        "goal": GOAL,
        "imports": round(imports, 1),
        "probing_images": round(sum(watch.others.values()), 1),
        "models": {
            name: {
                "calls": model.calls,
                "inputs": model.inputs,
                "distinct": len(model.digests),
                "cpu_seconds": round(model.cpu_seconds, 1),
            }
            for name, model in sorted(watch.models.items(), key=lambda pair: -pair[1].cpu_seconds)
        },
        "stages": {
            name: {key: stage[key] for key in ("items", "seconds", "backend_seconds")}
            for name, stage in json.loads((folder / "run" / "run.json").read_text())["stages"].items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", default="0-70")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DND_STORE"] = str(Path(folder) / "store")
        figures = measure(options.units, Path(folder))
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
