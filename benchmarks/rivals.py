"""DnD and its rivals on units whose meaning is known: planted units, latents of an autoencoder, directions.

    python benchmarks/rivals.py run planted-1 dnd     # one set by one method; `run` alone: all that is missing
    python benchmarks/rivals.py table                 # writes results/rivals.json and rivals.md

Every method gets the same target, probing scenes, exemplars and small models. A label is right where it names the
unit's meaning and nothing else; for a union both halves must be among three labels; noise must get no label.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnd.api import Truth, Unit, read_truth
from dnd.evaluation.intervals import paired, wilson
from dnd.results.run import RunFolder
from dnd_microworld import HERE, planted
from dnd_microworld.grade import is_right

RESULTS = Path(__file__).parent / "results" / "rivals.json"
PAGE = Path(__file__).parent / "rivals.md"
RUNS = Path("runs/rivals")

SETS: Mapping[str, tuple[list[str], Path]] = {
    "shipped": (["default"], HERE / "truth.csv"),
    **{
        f"planted-{seed}": (["default", "--set", f"target.planted_seed={seed}"], planted.truth_file(seed))
        for seed in range(1, planted.LAST_SEED + 1)
    },
    "latents": (["latents"], HERE / "latents" / "latents.csv"),
    "directions": (["directions"], HERE / "latents" / "directions.csv"),
}
"""Set -> run file with settings, and the truth."""
METHODS: Mapping[str, list[str]] = {
    "dnd": [],
    "clip-dissect": [
        *("--method", "clip-dissect", "--set", "method.model=microworld-clip"),
        *("--set", "method.concepts=package:dnd_microworld/concepts.txt"),
    ],
    "network-dissection": ["--method", "network-dissection"],
    "milan": ["--method", "milan"],
    "captions": ["--summarizer", "captions", "--scorer", "first"],
    "words": ["--summarizer", "word-statistics", "--scorer", "first"],
}
KINDS = ("single", "conjunction", "union", "noise", "latent", "direction")
TOLD = {
    "dnd": "the run file `default`",
    "clip-dissect": "its concept set has every true name, unions aside",
    "network-dissection": "with the masks that the scenes are drawn from",
    "milan": "exemplar captions by pointwise mutual information",
    "captions": "the commonest simplified captions, not tested",
    "words": "words of the captions that are commoner than elsewhere, not tested",
}


def label(name: str, method: str) -> None:
    """One set by one method; nothing where that is done."""
    out, options = RUNS / f"{name}-{method}", SETS[name][0]
    if (out / "seconds.json").is_file():
        return
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "dnd",
        "run",
        *options,
        *METHODS[method],
        "--out",
        str(out),
        "--no-report",
        "--quiet",
    ]
    subprocess.run(command, check=True)
    (out / "seconds.json").write_text(json.dumps(round(time.perf_counter() - began, 1)))


def rights(name: str, method: str) -> dict[Unit, tuple[str, bool]]:
    """Kind of each unit of the truth, and whether its label is right."""
    truth: Mapping[Unit, Truth] = read_truth(SETS[name][1])
    labels = {one.unit: one for one in RunFolder(RUNS / f"{name}-{method}").labels}
    missing = set(truth) - set(labels)
    if missing:
        raise SystemExit(f"{name} by {method}: no line of {min(map(str, missing))}")
    return {unit: (known.kind, is_right(labels[unit], known)) for unit, known in truth.items()}


def cost(name: str, method: str) -> float:
    """Seconds of the stages that the method uses, those from the store as they were measured first."""
    run = json.loads((RUNS / f"{name}-{method}" / "run.json").read_text())
    return float(sum(stage.get("seconds", 0) for stage in run["stages"].values()))


def table() -> dict[str, Any]:
    done = [name for name in SETS if all((RUNS / f"{name}-{one}" / "seconds.json").is_file() for one in METHODS)]
    by = {method: {(name, *item): right for name in done for item, right in _keyed(name, method)} for method in METHODS}
    found: dict[str, Any] = {"sets": done, "methods": {}}
    for method, own in by.items():
        kinds: dict[str, Any] = {}
        for kind in KINDS:
            values = [right for key, right in own.items() if key[1] == kind]
            if values:
                low, high = wilson(sum(values), len(values))
                kinds[kind] = {"right": sum(values), "of": len(values), "low": round(low, 3), "high": round(high, 3)}
        keys = sorted(own, key=str)
        mine, theirs = (np.array([float(one[key]) for key in keys]) for one in (by["dnd"], own))
        apart = {}
        for kind in ("all", *kinds):
            chosen = np.array([kind in ("all", key[1]) for key in keys])
            if method != "dnd":
                estimate, p = paired(mine[chosen], theirs[chosen])
                apart[kind] = {"difference": round(estimate.value, 3), "low": round(estimate.low, 3)}
                apart[kind] |= {"high": round(estimate.high, 3), "p": float(f"{p:.2g}")}
        sets = {name: sum(right for key, right in own.items() if key[0] == name) for name in done}
        seconds = {name: json.loads((RUNS / f"{name}-{method}" / "seconds.json").read_text()) for name in done}
        found["methods"][method] = {"kinds": kinds, "dnd minus this": apart, "sets": sets, "seconds": seconds}
    return found


def _keyed(name: str, method: str) -> list[tuple[tuple[str, str], bool]]:
    return [((kind, str(unit)), right) for unit, (kind, right) in rights(name, method).items()]


def page(found: Mapping[str, Any]) -> str:
    methods = found["methods"]
    kinds = [kind for kind in KINDS if kind in methods["dnd"]["kinds"]]
    lines = ["| method | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for method, of in methods.items():
        cells = [f"{one['right']} of {one['of']} [{one['low']:.2f}, {one['high']:.2f}]" for one in of["kinds"].values()]
        lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    lines += ["", "| DnD minus | " + " | ".join(["all", *kinds]) + " |", "|---" * (len(kinds) + 2) + "|"]
    for method, of in methods.items():
        if method != "dnd":
            apart = of["dnd minus this"]
            cells = [f"{one['difference']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" for one in apart.values()]
            lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("set", nargs="?", choices=list(SETS))
    parser.add_argument("method", nargs="?", choices=list(METHODS))
    options = parser.parse_args()
    if options.what == "run":
        for name in [options.set] if options.set else list(SETS):
            for method in [options.method] if options.method else list(METHODS):
                label(name, method)
    else:
        found = table()
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(page(found))


if __name__ == "__main__":
    main()
