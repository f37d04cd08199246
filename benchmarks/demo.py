"""The main job, measured: wall time, the share outside backends and target, peak memory, and how many labels are right.

    python benchmarks/demo.py [--out benchmarks/results/demo.json] [dnd run's own arguments]

Runs `dnd run` in a folder and with a store of its own, so that nothing is reused, and reads what it left.
"""

from __future__ import annotations

import argparse
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


def measure(arguments: list[str]) -> dict[str, Any]:
    """One run; its figures."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dnd", "run", *arguments, "--out", str(run)], check=True)
        wall = time.perf_counter() - began
        record = json.loads((run / "run.json").read_text())
    stages = record["stages"]
    inside = sum(stage["backend_seconds"] for stage in stages.values())
    truth = record.get("truth", {})
    devices = ", ".join(record["hardware"]["devices"]) or "no GPU"
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {devices}",
        "versions": record["versions"],
        "models": record["models"],
        "wall_seconds": round(wall, 1),
        "overhead_share": round((wall - inside) / wall, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "stages": {
            name: {key: stage[key] for key in ("items", "computed", "seconds", "backend_seconds")}
            for name, stage in stages.items()
        },
        "units": record["units"],
        "right": {grade["kind"]: [grade["right"], grade["total"]] for grade in truth.get("grades", [])},
        "controls": truth.get("controls", {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "demo.json")
    options, arguments = parser.parse_known_args()
    figures = measure(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({k: v for k, v in figures.items() if k not in ("versions", "models")}, indent=1))


if __name__ == "__main__":
    main()
