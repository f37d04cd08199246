"""One process, one Ray node, two nodes, and two of which one is killed: the same labels, and how long they take.

    python benchmarks/cluster.py --units 0-11 --out benchmarks/results/cluster.json

Nodes are processes of this machine with one CPU each; each run has a store of its own. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", default="all")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ |= {"RAY_memory_monitor_refresh_ms": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        found = {
            "one process": run(base / "process", given.units),
            "one node": on_nodes(base / "one", given.units, 1),
            "two nodes": on_nodes(base / "two", given.units, 2),
            "two nodes, one killed": on_nodes(base / "killed", given.units, 2, kill="images"),
        }
        labels = {name: (Path(one["run"]) / "labels.csv").read_bytes() for name, one in found.items()}
    for one in found.values():
        del one["run"]
    same = len(set(labels.values())) == 1
    result = {"same_labels": same, "units": given.units, "cores": os.cpu_count(), "python": platform.python_version()}
    text = json.dumps(result | {"runs": found}, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    if not same:
        sys.exit("the labels differ")


def run(folder: Path, units: str, *options: str, watch: Any = None) -> dict[str, Any]:
    """One run of the default; seconds of each stage."""
    out = folder / "run"
    command = [sys.executable, "-m", "dnd", "run", "--units", units, "--out", str(out), "--no-report"]
    began = time.perf_counter()
    with subprocess.Popen([*command, "--quiet", "--device", "cpu", *options]) as process:
        if watch:
            watch(out, process)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - began
    stages = json.loads((out / "run.json").read_text())["stages"]
    return {"run": str(out), "seconds": round(seconds, 1)} | {
        name: round(stage["seconds"], 1) for name, stage in stages.items()
    }


def on_nodes(folder: Path, units: str, count: int, kill: str = "") -> dict[str, Any]:
    """The same on a cluster; with `kill`, a stage, its second node is killed while that stage is at work."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    nodes = [cluster.add_node(**NODE) for _ in range(count - 1)]

    def watch(out: Path, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            if list(out.parent.glob(f".dnd-store/{kill}-*/part-*")):
                cluster.remove_node(nodes[-1], allow_graceful=False)
                return
            time.sleep(0.1)

    try:
        options = ("--executor", "ray", "--address", cluster.address)
        return run(folder, units, *options, watch=watch if kill else None)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
