"""DnD and its rivals on units whose meaning is known: planted units, latents of an autoencoder, directions.

    python benchmarks/rivals.py run planted-1 dnd     # one set by one method; `run` alone: all that is missing
    python benchmarks/rivals.py table                 # writes results/rivals.json, prints the tables of rivals.md

Every method gets the same target, probing scenes, exemplars and small models. A label is right where it names the
unit's meaning and nothing else; for a union both halves must be among three labels; noise must get no label.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnd.api import Label, Truth, Unit, read_truth
from dnd.evaluation.intervals import paired, wilson
from dnd.results.run import RunFolder
from dnd_microworld import HERE, planted
from dnd_microworld.grade import attributes, is_right

RESULTS = Path(__file__).parent / "results" / "rivals.json"
RUNS = Path("runs/rivals")

SETS: Mapping[str, tuple[list[str], Path]] = {
    "shipped": (["default"], HERE / "truth.csv"),
    **{
        f"planted-{seed}": (["default", "--set", f"target.planted_seed={seed}"], planted.truth_file(seed))
        for seed in (1, 2, 3)
    },
    "latents": (["latents"], HERE / "latents" / "latents.csv"),
    "directions": (["directions"], HERE / "latents" / "directions.csv"),
}
"""Set -> run file with settings, and the truth."""
METHODS: Mapping[str, list[str]] = {
    "dnd": [],
    "refine": ["--method", "refine"],
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


def label(name: str, method: str) -> None:
    """One set by one method; nothing where that is done."""
    out, options = RUNS / f"{name}-{method}", SETS[name][0]
    if (out / "labels.csv").is_file():
        return
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


def rights(name: str, method: str) -> dict[tuple[str, str], tuple[bool, bool]]:
    """By kind and unit of the truth: whether the label is right, and whether its first line names a meaning at all,
    whatever else it says."""
    truth: Mapping[Unit, Truth] = read_truth(SETS[name][1])
    labels = {one.unit: one for one in RunFolder(RUNS / f"{name}-{method}").labels}
    missing = set(truth) - set(labels)
    if missing:
        raise SystemExit(f"{name} by {method}: no line of {min(map(str, missing))}")
    return {
        (known.kind, str(unit)): (is_right(labels[unit], known), names(labels[unit], known))
        for unit, known in truth.items()
    }


def names(label: Label, truth: Truth) -> bool:
    said = attributes(label.labels[0][0]) if label.status == "labelled" else frozenset()
    return any(attributes(concept) <= said for concept in truth.concepts)


def table() -> dict[str, Any]:
    done = [name for name in SETS if all((RUNS / f"{name}-{one}" / "labels.csv").is_file() for one in METHODS)]
    by = {
        method: {(name, *key): found for name in done for key, found in rights(name, method).items()}
        for method in METHODS
    }
    found: dict[str, Any] = {"sets": done, "methods": {}}
    for method, own in by.items():
        kinds: dict[str, Any] = {}
        for kind in KINDS:
            values = [found for key, found in own.items() if key[1] == kind]
            if values:
                right, named = (sum(those) for those in zip(*values, strict=True))
                low, high = wilson(right, len(values))
                kinds[kind] = {"right": right, "of": len(values), "low": round(low, 3), "high": round(high, 3)}
                kinds[kind] |= {"named": named} if kind != "noise" else {}
        keys = sorted(own, key=str)
        mine, theirs = (np.array([float(one[key][0]) for key in keys]) for one in (by["dnd"], own))
        apart = {}
        for kind in ("all", *kinds):
            chosen = np.array([kind in ("all", key[1]) for key in keys])
            if method != "dnd":
                estimate, p = paired(mine[chosen], theirs[chosen])
                apart[kind] = {"difference": round(estimate.value, 3), "low": round(estimate.low, 3)}
                apart[kind] |= {"high": round(estimate.high, 3), "p": float(f"{p:.2g}")}
        sets = {name: sum(right for key, (right, _) in own.items() if key[0] == name) for name in done}
        found["methods"][method] = {"kinds": kinds, "dnd minus this": apart, "sets": sets}
    return found


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
    named = [kind for kind in kinds if kind != "noise"]
    lines += ["", "| names it at all | " + " | ".join(named) + " |", "|---" * (len(named) + 1) + "|"]
    for method, of in methods.items():
        lines.append(f"| `{method}` | " + " | ".join(str(of["kinds"][kind]["named"]) for kind in named) + " |")
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
