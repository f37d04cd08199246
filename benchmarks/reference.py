"""The published method's loop beside `dnd run`: the same tiny models, units and machine.

    python benchmarks/reference.py [--units 0-11] [--repeats 3] [--steps 8]

The loop is our own code of the reference's structure: one pass over the probing images, then unit by unit crops,
captions, concepts, images and scores, with nothing shared between units; crops and synthetic images go through the
target one at a time. It is kinder than the reference in one thing: models are loaded once, not for every unit. Its
settings are the paper's: 10 exemplars, 5 answers at a temperature of 0.3, 10 images a candidate, TopK-squared times the
image product; the paper makes images in 50 steps (`--steps`). `dnd run` runs the default run file. Each is a process of
its own with one thread; they take turns. Writes benchmarks/results/reference.json, one entry per --units and --steps:
items, calls and CPU seconds by stage, image-steps, labels judged by the target's truth.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "reference.json"
LAYER, K, IMAGES, TOP = "concepts", 10, 10, 5


@dataclass
class Stage:
    items: int = 0
    calls: int = 0
    cpu_seconds: float = 0.0


class Loop:
    """What the reference does, unit by unit."""

    def __init__(self, steps: int) -> None:
        from dnd import api
        from dnd.config.read import read_run
        from dnd.models.weights import Weights
        from dnd.pipeline.build import Builder
        from dnd.plugin.registry import Registry

        registry = Registry.load()
        options = {"generator.steps": steps, "summarizer.temperature": 0.3, "summarizer.n_samples": 5, "concepts.n": 5}
        self.run = run = read_run("default", registry, options=options)
        builder = Builder(registry, api.Runtime("cpu", Weights.default().resolve))
        self.target, self.probing = builder.target(run.target), builder.probing(run.probing)
        self.module, self.preprocess = builder.module(run.target)
        self.captioner, self.summarizer = builder.plugin(run.captioner), builder.plugin(run.summarizer)
        self.generator = builder.plugin(run.generator)
        clip = registry.find("encoder", "clip").cls
        assert clip is not None
        self.clip: Any = clip(clip.Config(model="microworld-clip"), builder.runtime)
        self.stages: dict[str, Stage] = {}

    @contextmanager
    def stage(self, name: str, items: int, calls: int = 1) -> Iterator[None]:
        found, began = self.stages.setdefault(name, Stage()), time.process_time()
        yield
        found.items, found.calls = found.items + items, found.calls + calls
        found.cpu_seconds += time.process_time() - began

    def maps(self, images: Sequence[Any]) -> Any:
        """(n, units, h, w)"""
        import torch

        found: list[Any] = []
        handle = self.module.get_submodule(LAYER).register_forward_hook(lambda m, i, out: found.append(out.detach()))
        with torch.inference_mode():
            self.module(torch.stack([self.preprocess(image) for image in images]))
        handle.remove()
        return found[0].numpy()

    def label(self, units: Sequence[int]) -> list[Any]:
        import numpy as np

        from dnd.api import Label, Unit

        with ExitStack() as loaded:
            with self.stage("load", 4, 0):
                for backend in (self.captioner, self.summarizer, self.generator, self.clip):
                    loaded.enter_context(backend)
            with self.stage("exemplars", len(self.probing), -(-len(self.probing) // 64)):
                pooled = np.concatenate(
                    [
                        self.maps(
                            [self.probing.open(i) for i in range(start, min(start + 64, len(self.probing)))]
                        ).mean((2, 3))
                        for start in range(0, len(self.probing), 64)
                    ]
                )
            return [Label(Unit(LAYER, unit), "labelled", self._unit(unit, pooled[:, unit])) for unit in units]

    def _unit(self, unit: int, pooled: Any) -> tuple[tuple[str, float], ...]:
        import numpy as np

        from dnd.api import ImageRequest, SummaryRequest, derive_seed

        strongest = [self.probing.open(int(i)) for i in np.argsort(-pooled, kind="stable")[:K]]
        exemplars = self._exemplars(unit, strongest)
        with self.stage("captions", len(exemplars)):
            captions = tuple(self.captioner.caption(exemplars))
        with self.stage("concepts", 1):
            request = SummaryRequest(captions, 5, derive_seed(0, "reference", unit))
            (concepts,) = self.summarizer.summarize([request])
        images = []
        for concept in concepts:
            requests = [ImageRequest(concept, derive_seed(0, unit, concept, n)) for n in range(IMAGES)]
            with self.stage("images", len(requests)):
                images += self.generator.generate(requests)
        with self.stage("activations", len(images), len(images)):
            values = np.array([self.maps([image]).mean((2, 3))[0, unit] for image in images])
        with self.stage("scores", len(images) + len(strongest), 2):
            seen, shown = np.stack(self.clip.encode(images)), np.stack(self.clip.encode(strongest))
        order = np.argsort(-values, kind="stable")
        ranks = np.empty(len(values))
        ranks[order] = np.arange(len(values))
        squares = [(np.sort(one)[:TOP] ** 2).mean() for one in ranks.reshape(len(concepts), IMAGES)]
        position = np.argsort(np.argsort(-np.array(squares), kind="stable"), kind="stable") + 1  # the best gets most
        first = set(order[:10].tolist())
        product = [
            float(np.mean([seen[i] @ shown.T for i in own]))
            if (own := first.intersection(range(n * 10, n * 10 + 10)))
            else -1.0
            for n in range(len(concepts))
        ]
        scores = position * np.array(product)
        return tuple((concepts[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:3])

    def _exemplars(self, unit: int, strongest: Sequence[Any]) -> list[Any]:
        """The ten best of the strongest images and their attention crops."""
        from dnd.pipeline.exemplars.boxes import attention_boxes

        shown, values = list(strongest), []
        with self.stage("crops", 0, 0):
            for image in strongest:
                own = self.maps([image])[0, unit]
                values.append(float(own.mean()))
                for box in attention_boxes(own, image.size[::-1]):
                    edges = [round(edge * side) for edge, side in zip(box, image.size * 2, strict=True)]
                    shown.append(image.crop(edges).resize(image.size))
            values += [float(self.maps([crop])[0, unit].mean()) for crop in shown[len(strongest) :]]
        with self.stage("crops", len(shown), len(shown)):
            best = sorted(range(len(shown)), key=lambda i: -values[i])[:K]
        return [shown[i] for i in best]


def loop(units: str, steps: int) -> dict[str, Any]:
    """In this process."""
    from dnd.config.units import parse_units
    from dnd.offline.block import offline

    with offline():
        made = Loop(steps)
        labels = made.label(list(parse_units(units, 71)))
    assert made.target is not None
    grading = made.target.grade(labels)
    assert grading is not None
    return {
        "stages": {name: {**asdict(s), "cpu_seconds": round(s.cpu_seconds, 1)} for name, s in made.stages.items()},
        "images": made.stages["images"].items,
        "image_steps": made.stages["images"].items * steps,
        "right": {grade.kind: [grade.right, grade.total] for grade in grading.grades},
    }


def product(units: str, folder: Path) -> dict[str, Any]:
    """`dnd run`, in a process of its own."""
    out = folder / "run"
    command = [sys.executable, "-m", "dnd", "run", "--units", units, "--out", str(out), "--quiet", "--no-report"]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "DND_STORE": str(folder / "store")}
    )
    record = json.loads((out / "run.json").read_text())
    images = record["stages"]["images"]["computed"]
    steps = tomllib.loads((out / "run.toml").read_text())["generator"]["steps"]
    return {
        "stages": {
            name: {"items": stage["items"], "computed": stage["computed"], "seconds": stage["seconds"]}
            for name, stage in record["stages"].items()
        },
        "images": images,
        "image_steps": images * steps,
        "right": {grade["kind"]: [grade["right"], grade["total"]] for grade in record["truth"]["grades"]},
    }


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(who: str, units: str, steps: int) -> dict[str, Any]:
    before = cpu_of_children()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        if who == "dnd":
            found = product(units, Path(folder))
        else:
            command = [sys.executable, __file__, "--loop", "--units", units, "--steps", str(steps)]
            found = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
    return {**found, "cpu_seconds": round(cpu_of_children() - before, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", default="0-11")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="of the loop's generator")
    parser.add_argument("--loop", action="store_true", help="the loop alone, in this process")
    options = parser.parse_args()
    if options.loop:
        print(json.dumps(loop(options.units, options.steps)))
        return
    runs: dict[str, list[dict[str, Any]]] = {"loop": [], "dnd": []}
    for _ in range(options.repeats):
        for who, some in runs.items():
            some.append(measured(who, options.units, options.steps))
            print(json.dumps({who: some[-1]}), flush=True)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    totals = {who: sorted(one["cpu_seconds"] for one in some) for who, some in runs.items()}
    middle = {who: seconds[len(seconds) // 2] for who, seconds in totals.items()}
    known[f"units {options.units}, {options.steps} steps"] = {
        **{who: {**some[0], "cpu_seconds": totals[who]} for who, some in runs.items()},
        "loop / dnd": {
            "cpu_seconds": round(middle["loop"] / middle["dnd"], 2),
            **{key: round(runs["loop"][0][key] / runs["dnd"][0][key], 2) for key in ("images", "image_steps")},
        },
    }
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
