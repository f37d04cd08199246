"""Images only where they can matter: how many are left out, and at what price, by scorer, rounds and setting.

    python benchmarks/stopping.py --work FOLDER

The default run on planted targets and seeds, with each scorer: first with all images, then with every setting of
`images.early_stopping` and other rounds, on the same store. Counts the images that each needed and the labels that it
changed, and judges them by the truth. Writes benchmarks/results/stopping.json, where rows of sets and scorers that were
not asked for stay. Runs that are in the folder already are not computed again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dnd import api
from dnd.config.read import read_run
from dnd.offline.block import offline
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder

RESULTS = Path(__file__).parent / "results" / "stopping.json"
SETS: dict[str, dict[str, Any]] = {
    "shipped": {},
    "shipped, seed 1": {"seed": 1},
    **{f"planted {n}": {"target.planted_seed": n, "probing.seed": 10 + n} for n in range(1, 7)},
}
SCORERS: dict[str, dict[str, Any]] = {
    "coverage": {},
    **{
        name: {"scorer.backend": name, "labels.calibration": "none", "labels.min_confidence": 0.5, **model}
        for name, model in {
            "image-product": {"scorer.model": "microworld-clip"},
            "clip-rank": {"scorer.model": "microworld-clip"},
            "topk-squared": {},
            "mean": {},
        }.items()
    },
}
WITH_BOUNDS = {"exact": ((), (0.85,), (0.5, 0.85), (0.2, 0.4, 0.6, 0.85)), "economy": ((0.85,), (0.2, 0.4, 0.6, 0.85))}
WITHOUT = {"economy": ((0.2, 0.4, 0.6), (0.4,), (0.6,))}
Rows = list[dict[str, str]]


def trials(scorer: str) -> Iterator[tuple[str, Sequence[float]]]:
    """(setting, rounds), the run with all images first."""
    yield "off", ()
    for setting, all_rounds in (WITH_BOUNDS if scorer == "coverage" else WITHOUT).items():
        for rounds in all_rounds:
            yield setting, rounds


def run(work: Path, probe: str, scorer: str, setting: str, rounds: Sequence[float]) -> Path:
    """The folder of a finished run."""
    name = "_".join([probe, scorer, setting, *(f"{100 * share:.0f}" for share in rounds)])
    folder = work / name.replace(" ", "-").replace(",", "")
    if not (folder / "run.json").exists():
        options = {**SETS[probe], **SCORERS[scorer], "images.early_stopping": setting}
        registry = Registry.load()
        cls = registry.find("scorer", scorer).cls
        assert cls is not None
        with_rounds = cls.__dict__.get("rounds")
        cls.rounds = property(lambda self: rounds)  # type: ignore[attr-defined]
        try:
            with offline():
                execute(read_run("default", registry, options=options), folder, registry=registry)
        finally:
            if with_rounds is None:
                del cls.rounds  # type: ignore[attr-defined]
            else:
                cls.rounds = with_rounds  # type: ignore[attr-defined]
    return folder


def table(folder: Path) -> Rows:
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def figures(folder: Path, whole: Path) -> dict[str, Any]:
    """Of a run, beside the one with all images."""
    record, full = (json.loads((one / "run.json").read_text()) for one in (folder, whole))
    own, others = ([unit.labels for unit in RunFolder(one)] for one in (folder, whole))
    images, all_images = (one["stages"]["images"]["items"] for one in (record, full))
    concepts = [[[label.concept for label in labels] for labels in some] for some in (own, others)]
    pairs = list(zip(*concepts, strict=True))
    return {
        "images": images,
        "share": round(images / all_images, 3),
        "units": len(pairs),
        "same_table": (folder / "labels.csv").read_bytes() == (whole / "labels.csv").read_bytes(),
        "first_changed": sum(one[:1] != other[:1] for one, other in pairs),
        "any_changed": sum(one != other for one, other in pairs),
        "in_table_changed": sum(
            any(a[key] != b[key] for key in ("status", "label", "label_2", "label_3"))
            for a, b in zip(table(folder), table(whole), strict=True)
        ),
        "right": sum(grade["right"] for grade in record["truth"]["grades"]),
        "right_with_all": sum(grade["right"] for grade in full["truth"]["grades"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--scorers", nargs="*", default=list(SCORERS))
    options = parser.parse_args()
    asked = {(probe, scorer) for probe in options.sets for scorer in options.scorers}
    old = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    rows = [row for row in old if (row["set"], row["scorer"]) not in asked]
    for probe in options.sets:
        for scorer in options.scorers:
            for setting, rounds in trials(scorer):
                folder = run(options.work, probe, scorer, setting, rounds)
                found = figures(folder, run(options.work, probe, scorer, "off", ()))
                rows.append({"set": probe, "scorer": scorer, "setting": setting, "rounds": list(rounds), **found})
                print(json.dumps(rows[-1]), flush=True)
    RESULTS.write_text(json.dumps({"version": api.API_VERSION, "n_images": 10, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
