"""The method refine beside the plain one, on planted units.

    dnd run --set target.planted_seed=1 --out PLAIN                       # 0 is the shipped target
    dnd run --set target.planted_seed=1 --method refine --out REFINED     # shares the store
    python benchmarks/refine.py --runs plain PLAIN ... --runs refine REFINED ... [--runs "more candidates" ...]

Runs of the same target stand at the same place of each list; targets over other senses (`target.planted_seed=7` and on)
get names of their own. Writes these names of benchmarks/results/refine.json, and leaves the others there as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnd.api import read_truth
from dnd.evaluation.intervals import wilson
from dnd.results.run import RunFolder
from dnd.results.unit import Exemplar
from dnd_microworld import grade, planted, world

RESULTS = Path(__file__).parent / "results" / "refine.json"
SHIPPED = Path(planted.__file__).with_name("truth.csv")


def measure(folder: Path) -> list[dict[str, Any]]:
    """A row for each unit: its kind, whether its label is right, and says more than is true, what it was told to be."""
    run = RunFolder(folder)
    seed = run.settings["target"].get("planted_seed", 0)
    truths = {unit.index: truth for unit, truth in read_truth(planted.truth_file(seed) if seed else SHIPPED).items()}
    rows = []
    for record in run.records():
        truth = truths[record.index]
        wanted = {grade.attributes(concept) for concept in truth.concepts}
        given = grade.attributes(record.concept)
        rows.append(
            {
                "kind": truth.kind,
                "right": grade.is_right(record.label, truth),
                "labelled": record.status == "labelled",
                "too specific": record.status == "labelled" and any(given > one for one in wanted),
                "both told": len(record.meanings) == 2 and {grade.attributes(one) for one in record.meanings} == wanted,
                "two told": len(record.meanings) > 1,
                "shown": [sum(shows(one, concept) for one in record.exemplars) for concept in truth.concepts],
                "auc": max((one.auc for one in record.candidates if one.auc is not None), default=0.0),
            }
        )
    return rows


def shows(exemplar: Exemplar, concept: str) -> bool:
    """Whether the scene that it is, or was cut from, shows the concept."""
    return concept in world.concepts(world.draw_scene("probing", int(exemplar.source.removeprefix("scene-"))))


def images(folder: Path) -> int:
    """Distinct synthetic images that its candidates were tested on."""
    return len({one.digest for record in RunFolder(folder).records() for c in record.candidates for one in c.images})


def share(values: Sequence[bool]) -> list[float]:
    """With its 95 % interval, and of how many."""
    return [round(v, 3) for v in (sum(values) / len(values), *wilson(sum(values), len(values)))] + [len(values)]


def by_shown(rows: Sequence[dict[str, Any]]) -> dict[int, str]:
    """By how many exemplars show the concept, of a union the half that fewer show."""
    found: dict[int, list[bool]] = {}
    for row in sorted(rows, key=lambda row: min(row["shown"])):
        found.setdefault(min(row["shown"]), []).append(row["right"])
    return {shown: f"{sum(right)} of {len(right)}" for shown, right in found.items()}


def summary(folders: Sequence[Path]) -> dict[str, Any]:
    by_run = [measure(folder) for folder in folders]
    rows = [row for own in by_run for row in own]
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in grade.KINDS}
    means = [row for row in rows if row["kind"] != "noise"]
    return {
        "right": {kind: share([row["right"] for row in own]) for kind, own in of.items()},
        "right by run": [
            {kind: sum(row["right"] for row in own if row["kind"] == kind) for kind in grade.KINDS} for own in by_run
        ],
        "meaningful units without a label": share([not row["labelled"] for row in means]),
        "labels that are too specific": share([row["too specific"] for row in means]),
        "unions told as A | B": share([row["both told"] for row in of["union"]]),
        "others told as A | B": share([row["two told"] for row in means if row["kind"] != "union"]),
        "right by how many exemplars show the concept, of a union the rarer half": {
            kind: by_shown(of[kind]) for kind in ("conjunction", "union")
        },
        "best candidate's AUC, mean": round(sum(row["auc"] for row in means) / len(means), 4),
        "images": [images(folder) for folder in folders],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", action="append", metavar=("NAME", "RUN"), required=True)
    options = parser.parse_args()
    result = {name: summary([Path(folder) for folder in folders]) for name, *folders in options.runs}
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(json.loads(RESULTS.read_text("utf-8")) | result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
