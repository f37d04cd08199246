"""Everything that a GPU can tell within ten minutes: the tests that need one, the microworld's labels against those of
a CPU, and the large models at full size.

    python benchmarks/gpu.py                                        # all of it, into benchmarks/results/gpu-<its name>
    python benchmarks/gpu.py --parts llama,sdxl --rounds 1          # some of it, added to what is there
    python benchmarks/gpu.py --size tiny --device cpu --out out --cpu-labels labels.csv --parts blip2,microworld

Parts run one after the other, each in a process of its own with a file of its own, so that a time limit loses nothing:
`tests` (`pytest -m gpu`), `microworld` (the default run; where no labels.csv of a CPU is given, it runs there too), and
the models of full_size.py, whose options for batches, rounds and folders this script passes on. After each part
OUT/summary.json is written again, from all files there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as Xml
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import architectures as arch
import full_size
import torch

from dnd.runtime.memory import device_name

ROOT = Path(__file__).parent.parent
PARTS = ("tests", "microworld", *full_size.STAGES)
"""Of a standard run; other architectures are run where they are named."""
NEEDED = {"captions": full_size.CAPTIONS, "concepts": 1, "images": full_size.CONCEPTS * full_size.IMAGES, "scores": 1}
"""Items of each stage that a standard unit takes."""


def run_tests(out: Path) -> int:
    """`pytest -m gpu`, at tiny size: how many passed and which did not."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", f"--junitxml={report}"]
        done = subprocess.run(command, cwd=ROOT)
        if not report.exists():
            return done.returncode or 1
        cases = list(Xml.parse(report).iter("testcase"))
    failed = {
        c.get("name"): str(found.get("message")).splitlines()[0]
        for c in cases
        for found in (*c.findall("failure"), *c.findall("error"))
    }
    skipped = {c.get("name"): found.get("message") for c in cases for found in c.findall("skipped")}
    seconds = round(sum(float(c.get("time", 0)) for c in cases), 1)
    passed = len(cases) - len(skipped) - len(failed)
    write(out / "tests.json", {"passed": passed, "failed": failed, "skipped": skipped, "seconds": seconds})
    return done.returncode


def run_microworld(device: str, labels: Path | None, out: Path) -> int:
    """The default run on the device, and on a CPU unless its labels are there already; 0 where the runs succeed."""
    with tempfile.TemporaryDirectory() as place:
        runs: dict[str, Any] = {}
        for where in (device,) if labels else (device, "cpu"):
            folder = Path(place) / where.replace(":", "-")
            began = time.perf_counter()
            command = [sys.executable, "-m", "dnd", "run", "--device", where, "--out", str(folder)]
            done = subprocess.run(command, env=os.environ | {"DND_CACHE": f"{place}/cache-{folder.name}"})
            if done.returncode:
                return done.returncode
            about = json.loads((folder / "run.json").read_text("utf-8"))
            parts = ("items", "seconds", "backend_seconds")
            stages = {name: {key: stage[key] for key in parts} for name, stage in about["stages"].items()}
            runs[where] = {
                "wall_seconds": round(time.perf_counter() - began, 1),
                "stages": stages,
                "chosen": {name: s["chosen"] for name, s in about["stages"].items() if s.get("chosen")},
                "units": about["units"],
            }
            runs[where]["labels"] = read_labels(folder / "labels.csv")
        cpu = read_labels(labels) if labels else runs["cpu"].pop("labels")
        found = runs[device].pop("labels")
        runs["device_name"] = device_name(device)
        write(out / "microworld.json", runs | compare(found, cpu))
    return 0


def read_labels(path: Path) -> dict[str, str]:
    """Unit -> its label, or its status where it has none."""
    with path.open(encoding="utf-8", newline="") as file:
        return {f"{row['layer']}/{row['unit']}": row["label"] or row["status"] for row in csv.DictReader(file)}


def compare(found: Mapping[str, str], cpu: Mapping[str, str]) -> dict[str, Any]:
    """How many labels are the same word for word, and those that are not."""
    other = {unit: [found.get(unit), label] for unit, label in cpu.items() if found.get(unit) != label}
    return {"labels": len(cpu), "equal": len(cpu) - len(other), "different": other}


# --- together -----------------------------------------------------------------------------------------


def summarize(out: Path) -> list[dict[str, Any]]:
    """What the first rates of all stages make of a standard unit, and those rates."""
    best: dict[str, dict[str, Any]] = {}
    for architecture, stage in full_size.STAGES.items():
        file = out / f"{architecture}.json"
        rows = json.loads(file.read_text("utf-8"))[1:] if file.exists() else []
        if rows and rows[0].get("items_per_second"):
            best[stage] = rows[0]
    seconds = {stage: NEEDED[stage] / row["items_per_second"] for stage, row in best.items()}
    whole = set(best) == set(full_size.STAGES.values())
    head = {
        "standard_unit": NEEDED,
        "seconds_per_unit": {stage: round(one, 3) for stage, one in seconds.items()},
        "share_in_models": {stage: row["share_in_models"] for stage, row in best.items()},
        "units_per_hour": round(3600 / sum(seconds.values()), 1) if whole else None,
    }
    return [head, *best.values()]


def write(path: Path, what: Any) -> None:
    path.write_text(json.dumps(what, indent=1) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where a part failed."""
    known = dict.fromkeys((*PARTS, *arch.MODELS))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(known)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cpu-labels", type=Path, help="labels.csv of a default run on a CPU")
    parser.add_argument("--out", type=Path, help="folder of the results  [default: results/gpu-<name of the device>]")
    options, others = parser.parse_known_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(known):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --size tiny tries the script out")
    name = re.sub(r"[^a-z0-9]+", "-", device_name(options.device).lower()).strip("-")
    out: Path = options.out or Path(__file__).parent / "results" / f"gpu-{name}"
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in parts:
        if part == "tests":
            code = run_tests(out)
        elif part == "microworld":
            code = run_microworld(options.device, options.cpu_labels, out)
        else:
            given = ["--models", part, "--device", options.device, "--out", str(out), *others]
            code = full_size.main(given)
        failed += [part] if code else []
        write(out / "summary.json", summarize(out))
    print(json.dumps(summarize(out)[0], indent=1))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
