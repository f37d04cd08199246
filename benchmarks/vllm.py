"""The summarizer `vllm` against a real vLLM: does it serve, how fast, does it name as `llama` does, does it go away.

    python benchmarks/vllm.py --python ~/vllm --folder FOLDER [--out benchmarks/results/vllm.json]

Real `dnd run`s, in one folder so that they share captions and images: the microworld with `llama` and with `vllm`, free
and held to a pattern; a few of its units with SmolLM2-135M; then many chats at once, and a run that is interrupted and
one that is killed. Runs that are in FOLDER are not repeated. docs/gpus.md tells how to make the environment for
--python.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

MARK = "DND_BENCHMARK_MARK"
MICROWORLD = {"model": "microworld-llama", "temperature": 0.85, "n_samples": 16}
SMOLLM2 = {"model": "smollm2-135m-q4", "n_samples": 6, "n_extra_samples": 2}


class Bench:
    """Runs of `dnd run` with a store of their own, and whether they left a process behind."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        self.mark = uuid.uuid4().hex
        self.env = {**os.environ, MARK: self.mark}

    def command(self, name: str, summarizer: str, settings: dict[str, Any], *more: str) -> list[str]:
        if summarizer == "vllm":
            settings = {"python": self.python, **settings}
        sets = [part for key, value in settings.items() for part in ("--set", f"summarizer.{key}={json.dumps(value)}")]
        base = [sys.executable, "-m", "dnd", "run", "--device", "cpu", "--out", str(self.folder / name)]
        return [*base, "--summarizer", summarizer, *sets, *more]

    def run(self, name: str, summarizer: str, settings: dict[str, Any], *more: str) -> dict[str, Any]:
        """The figures of one run."""
        print(f"-- {name}", flush=True)
        words = self.folder / f"{name}.stderr"
        if not (self.folder / name / "run.json").exists():
            with words.open("w") as file:
                done = subprocess.run(self.command(name, summarizer, settings, *more), env=self.env, stderr=file)
            if done.returncode not in (0, 3):
                raise SystemExit(f"{name} failed:\n{words.read_text()[-3000:]}")
        record = json.loads((self.folder / name / "run.json").read_text())
        figures = {
            "settings": settings,
            "units": record["units"],
            "concept_seconds": round(record["stages"]["concepts"]["backend_seconds"], 1),
            "right": {grade["kind"]: [grade["right"], grade["total"]] for grade in record["truth"]["grades"]},
            "processes_left": len(list(self.left())),
        }
        ready = re.search(r"vllm: ready after (\d+) s", words.read_text() if words.exists() else "")
        return {**figures, **({"ready_seconds": int(ready[1])} if ready else {})}

    def left(self) -> Iterator[psutil.Process]:
        """Processes that our runs started and that are still there."""
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    yield process
            except psutil.Error:
                pass

    def labels(self, name: str) -> dict[tuple[str, str], str]:
        with (self.folder / name / "labels.csv").open(newline="") as file:
            return {(row["layer"], row["unit"]): row["label"] for row in csv.DictReader(file)}

    def findings(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name / "labels.jsonl").read_text().splitlines()]

    def candidates(self, name: str) -> list[list[str]]:
        return [[one["concept"] for one in unit.get("candidates") or ()] for unit in self.findings(name)]

    def agreement(self, one: str, other: str) -> dict[str, float]:
        """Share of units with the same label, and how alike their candidates are."""
        mine, theirs = self.labels(one), self.labels(other)
        same = sum(mine[unit] == theirs[unit] for unit in mine) / len(mine)
        return {"same_label": round(same, 3), **alike(self.candidates(one), self.candidates(other))}

    def other_seeds(self, name: str) -> dict[str, float]:
        """How alike `llama`'s candidates are to its own under other seeds: what chance alone makes of them."""
        from dnd.api import Runtime, SummaryRequest
        from dnd.models.weights import Weights
        from dnd_llama import LlamaConfig, LlamaSummarizer

        units = self.findings(name)
        requests = [
            SummaryRequest(tuple(one["caption"] for one in unit["exemplars"]), 8, seed)
            for seed, unit in enumerate(units)
        ]
        with LlamaSummarizer(LlamaConfig(**MICROWORLD), Runtime("cpu", Weights.default().resolve)) as llama:
            return alike(llama.summarize(requests), self.candidates(name))

    def end(self, how: signal.Signals) -> dict[str, Any]:
        """End a run while its server is up; how long until all its processes are gone."""
        settings = {**MICROWORLD, "n_samples": 100, "temperature": 1.9, "concurrency": 1, "eager": True}
        command = self.command(f"end-{how.name}-{self.mark[:6]}", "vllm", settings)
        run = subprocess.Popen(
            command,
            env=self.env,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("vllm: ready"):
                break
        time.sleep(1)
        before = len(list(self.left()))
        began = time.monotonic()
        run.send_signal(how)
        while list(self.left()) and time.monotonic() - began < 60:
            time.sleep(0.1)
        run.wait()
        return {
            "processes_before": before,
            "seconds_until_gone": round(time.monotonic() - began, 1),
            "processes_left": len(list(self.left())),
            "exit": run.returncode,
        }


def alike(mine: list[list[str]], theirs: list[list[str]]) -> dict[str, float]:
    """Share of units whose likeliest candidate is the same, and what the sets have in common (Jaccard, mean)."""
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a or b]
    overlaps = [len({*a} & {*b}) / len({*a, *b}) for a, b in pairs]
    return {
        "same_first": round(sum(a[:1] == b[:1] for a, b in pairs) / len(pairs), 3),
        "candidates": round(sum(overlaps) / len(pairs), 3),
    }


def many_chats(python: str, count: int) -> dict[str, Any]:
    """Chats per second, and how many answers change when the same chats come in another order, or one at a time."""
    from dnd.api import Runtime
    from dnd.models.weights import Weights
    from dnd_llama.conversation import Ask
    from dnd_llama.prompts import concept_messages
    from dnd_vllm import VllmSummarizer
    from dnd_vllm.config import VllmConfig

    rng = random.Random(0)
    shapes, colours = ("star", "ring", "circle", "heart", "cross"), ("red", "blue", "green", "white", "cyan")
    asks = []
    for seed in range(count):
        captions = [f"a {rng.choice(colours)} {rng.choice(shapes)}, plain background" for _ in range(10)]
        asks.append(Ask(concept_messages(captions), seed, 0.85))
    config = VllmConfig(model="microworld-llama", python=python, eager=True)
    with VllmSummarizer(config, Runtime("cpu", Weights.default().resolve)) as summarizer:
        summarizer.answer(asks[:16])
        began = time.perf_counter()
        first = summarizer.answer(asks)
        seconds = time.perf_counter() - began
        again = summarizer.answer(asks)
        backwards = summarizer.answer(asks[::-1])[::-1]
        few = count // 8
        began = time.perf_counter()
        alone = [summarizer.answer([ask])[0] for ask in asks[:few]]
        alone_seconds = time.perf_counter() - began

    def changed(other: list[str]) -> float:
        return round(sum(a != b for a, b in zip(first, other, strict=False)) / len(other), 4)

    return {
        "chats": count,
        "chats_per_second": round(count / seconds, 1),
        "one_at_a_time_per_second": round(few / alone_seconds, 1),
        "changed_on_repeat": changed(again),
        "changed_in_reverse_order": changed(backwards),
        "changed_one_at_a_time": changed(alone),
    }


def measure(python: str, folder: Path, units: str) -> dict[str, Any]:
    from dnd_vllm.interpreter import find

    found = find(python)
    bench = Bench(folder, python)
    some, small = ("--units", units), {**SMOLLM2, "eager": True}
    free, held = {"structured": False}, {"structured": True}
    runs = {
        "llama": bench.run("llama", "llama", MICROWORLD),
        "vllm": bench.run("vllm", "vllm", {**MICROWORLD, **free}),
        "held": bench.run("held", "vllm", {**MICROWORLD, **held}),
        "smol-llama": bench.run("smol-llama", "llama", SMOLLM2, *some),
        "smol-vllm": bench.run("smol-vllm", "vllm", {**small, **free}, *some),
        "smol-held": bench.run("smol-held", "vllm", {**small, **held}, *some),
    }
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, no GPU used",
        "threads": os.environ.get("OMP_NUM_THREADS", "as vLLM chooses"),
        "vllm": found.vllm,
        "its_torch": found.torch,
        "python": platform.python_version(),
        "runs": runs,
        "agreement": {
            "llama with itself, other seeds": bench.other_seeds("llama"),
            "vllm with llama": bench.agreement("vllm", "llama"),
            "held with vllm": bench.agreement("held", "vllm"),
            "smol-vllm with smol-llama": bench.agreement("smol-vllm", "smol-llama"),
            "smol-held with smol-vllm": bench.agreement("smol-held", "smol-vllm"),
        },
        "smollm2_candidates": {name: bench.candidates(name)[:3] for name in ("smol-llama", "smol-vllm", "smol-held")},
        "many_chats": many_chats(python, 512),
        "ends": {how.name: bench.end(how) for how in (signal.SIGINT, signal.SIGKILL)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python that has vLLM, or its virtual environment")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "vllm.json")
    parser.add_argument("--folder", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--units", default="0-4", help="units that SmolLM2 names")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    figures = measure(options.python, options.folder, options.units)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
