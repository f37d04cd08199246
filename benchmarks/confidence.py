"""Confidence fitted on planted units that no threshold was chosen on, and tested on others.

    python benchmarks/confidence.py --work FOLDER

Runs the default setting on further planted targets (`target.planted_seed`) and, with other probing scenes, on the
shipped one (seed 0). Every target is then judged by curves that were fitted on the others: which kind of curve is best,
whether confidences mean what they say, and what the thresholds on score and AUC were worth. What is shipped is
fitted on the planted seeds alone. Writes confidence.json and confidence.svg in benchmarks/results/, and
plugins/dnd_microworld/runfiles/microworld-coverage.json. Runs that are in the folder already are not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from diagram import draw, risk_coverage
from rich.console import Console
from scipy.optimize import minimize

import dnd_microworld
from dnd import api
from dnd.api import Label
from dnd.config.calibration import Calibration, read_off
from dnd.config.read import read_run
from dnd.evaluation.calibrate import fit, judge
from dnd.evaluation.intervals import wilson
from dnd.evaluation.reliability import Interval, reliability
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder
from dnd_microworld import grade

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "confidence.json"
PICTURE = ROOT / "benchmarks" / "results" / "confidence.svg"
SHIPPED = ROOT / "plugins" / "dnd_microworld" / "runfiles" / "microworld-coverage.json"
WORLD = Path(dnd_microworld.__file__).parent


@dataclass(frozen=True)
class Tried:
    """A finished run and its truth."""

    name: str
    folder: Path
    truth: Path


def planted(seed: int, work: Path, console: Console) -> Tried:
    """Seed 0 is the shipped target. Every run has probing scenes of its own."""
    name = f"planted-{seed}" if seed else "shipped-probing1"
    scenes = {"probing.seed": 10 + seed if seed else 1}
    if not (work / name / "labels.csv").exists():
        options = {**scenes, **({"target.planted_seed": seed} if seed else {}), **_by_hand()}
        execute(read_run("default", Registry.load(), options=options), work / name, console=console)
    return Tried(name, work / name, WORLD / (f"planted-{seed}.csv" if seed else "truth.csv"))


def _by_hand() -> dict[str, Any]:
    """The thresholds that were set by hand, so that labels do not hang on what is fitted here."""
    return {"labels.calibration": "none", "labels.min_score": 0.2, "labels.min_auc": 0.7}


# --- which curve -------------------------------------------------------------------------------------


def with_auc(known: Sequence[Tried]) -> Any:
    """Platt's sigmoid of the first label's score and AUC; a function of (n, 2)."""
    features = np.concatenate([_features(one) for one in known])
    right = np.concatenate([judge(one.folder, one.truth).first()[1] for one in known])
    goal = np.where(right > 0, (right.sum() + 1) / (right.sum() + 2), 1 / (len(right) - right.sum() + 2))

    def chance(weights: Any, x: Any) -> Any:
        return 1 / (1 + np.exp(-np.clip(x @ weights[:2] + weights[2], -60, 60)))

    def loss(weights: Any) -> float:
        p = np.clip(chance(weights, features), 1e-12, 1 - 1e-12)
        return float(-(goal * np.log(p) + (1 - goal) * np.log(1 - p)).mean())

    found = minimize(loss, np.zeros(3), method="L-BFGS-B", bounds=[(0, None), (0, None), (None, None)]).x
    return lambda x: chance(found, x)


def _features(one: Tried) -> Any:
    """(n, 2): score and AUC of every unit's first label, in the order of `judge`."""
    found = {}
    for record in RunFolder(one.folder).records():
        if record.label.labels:
            concept, score = record.label.labels[0]
            found[record.label.unit] = score, next(c.auc for c in record.candidates if c.concept == concept)
    return np.array([found[unit] for unit in judge(one.folder, one.truth).units])


def curves(one: Tried, others: Sequence[Tried]) -> dict[str, Any]:
    """Figures of the first labels of a run by each kind of curve, fitted on the others."""
    pairs = [(other.folder, other.truth) for other in others]
    scores, right = judge(one.folder, one.truth).first()
    made: dict[str, Any] = {kind: fit(pairs, kind).first for kind in ("platt", "isotonic")}
    given = {kind: np.array([read_off(knots, s) for s in scores]) for kind, knots in made.items()}
    given["platt of score and AUC"] = with_auc(others)(_features(one))
    return {kind: figures(confidence, right) for kind, confidence in given.items()}


def figures(confidence: Any, right: Any) -> dict[str, Any]:
    return {
        **asdict(reliability(confidence, right)),
        "risk_coverage": [[round(x, 4) for x in point] for point in risk_coverage(confidence, right)],
    }


# --- which threshold ---------------------------------------------------------------------------------


def rules(calibration: Calibration) -> dict[str, Any]:
    """Name -> whether a unit's first label with this score and this AUC is given."""

    def sure(score: float) -> float:
        return read_off(calibration.first, score)

    return {
        "every label": lambda score, auc: True,
        "by hand: AUC >= 0.7": lambda score, auc: auc >= 0.7,
        "by hand: AUC >= 0.7, score >= 0.2": lambda score, auc: auc >= 0.7 and score >= 0.2,
        **{
            f"confidence >= {least}": lambda score, auc, least=least: sure(score) >= least
            for least in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
        },
        "confidence >= 0.5, AUC >= 0.7": lambda score, auc: sure(score) >= 0.5 and auc >= 0.7,
    }


def decisions(one: Tried, calibration: Calibration) -> dict[str, Any]:
    """What each rule does with the units of a run, by the world's own grading of all their labels."""
    truth = api.read_truth(one.truth)
    found = {}
    for name, gives in rules(calibration).items():
        right = given = given_right = noise_given = meaning_silent = 0
        for record in RunFolder(one.folder).records():
            label, known = record.label, truth[record.label.unit]
            kept = False
            if label.labels:
                concept, score = label.labels[0]
                kept = gives(score, next(c.auc for c in record.candidates if c.concept == concept))
            said = Label(label.unit, "labelled" if kept else "uninterpretable", label.labels)
            right += grade.is_right(said, known)
            given += kept
            noise_given += kept and not known.concepts
            meaning_silent += not kept and bool(known.concepts)
            named = {grade.attributes(c) for c in known.concepts}
            given_right += bool(kept and grade.attributes(label.labels[0][0]) in named)
        found[name] = {
            "units": len(truth),
            "right": right,
            "labelled": given,
            "first label right": asdict(Interval(given_right / given, *wilson(given_right, given))) if given else None,
            "noise units labelled": noise_given,
            "meaningful units without a label": meaning_silent,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 0], help="of the targets (1 2 3 0)")
    options = parser.parse_args()
    console = Console(width=160)
    runs = [planted(seed, options.work, console) for seed in options.seeds]
    shipped = fit([(one.folder, one.truth) for one in runs if one.name.startswith("planted")], "platt")
    held: dict[str, Calibration] = {
        one.name: fit([(other.folder, other.truth) for other in runs if other != one], "platt") for one in runs
    }
    pooled = _pooled(runs, held)
    record = {
        "runs": {one.name: RunFolder(one.folder).facts["truth"]["grades"] for one in runs},
        "curves": {one.name: curves(one, [other for other in runs if other != one]) for one in runs},
        "all_first_labels": figures(*pooled),
        "later_labels": {one.name: _later(one, held[one.name]) for one in runs},
        "rules": {one.name: decisions(one, held[one.name]) for one in runs},
        "versions": {package: metadata.version(package) for package in ("dnd-describe", "torch", "numpy", "scipy")},
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    SHIPPED.write_text(shipped.model_dump_json(indent=1) + "\n", "utf-8")
    PICTURE.write_text(draw(pooled, shipped), "utf-8")
    _print(console, record)


def _later(one: Tried, calibration: Calibration) -> dict[str, Any]:
    scores, right, _ = judge(one.folder, one.truth).later()
    return figures(np.array([read_off(calibration.later, s) for s in scores]), right)


def _pooled(runs: Sequence[Tried], held: Mapping[str, Calibration]) -> tuple[Any, Any]:
    """Confidence and outcome of the first labels of all runs."""
    confidence, right = [], []
    for one in runs:
        scores, outcomes = judge(one.folder, one.truth).first()
        confidence += [read_off(held[one.name].first, score) for score in scores]
        right += outcomes.tolist()
    return np.array(confidence), np.array(right)


def _print(console: Console, record: Mapping[str, Any]) -> None:
    for name, kinds in record["curves"].items():
        for kind, one in kinds.items():
            ece, brier = one["ece"], one["brier"]
            console.print(
                f"{name}, {kind}: n {one['n']}, ECE {ece['value']:.3f} [{ece['low']:.3f}, {ece['high']:.3f}], Brier"
                f" {brier['value']:.3f} [{brier['low']:.3f}, {brier['high']:.3f}], constant {one['constant_brier']:.3f}"
            )
    lines = {"all first labels": record["all_first_labels"]}
    lines |= {f"{name}, later labels": one for name, one in record["later_labels"].items()}
    for name, one in lines.items():
        ece, brier = one["ece"], one["brier"]
        console.print(
            f"{name}: n {one['n']}, ECE {ece['value']:.3f} [{ece['low']:.3f}, {ece['high']:.3f}], Brier"
            f" {brier['value']:.3f} [{brier['low']:.3f}, {brier['high']:.3f}], constant {one['constant_brier']:.3f}"
        )
    for name, those in record["rules"].items():
        for rule, one in those.items():
            console.print(
                f"{name}, {rule}: right {one['right']} of {one['units']}, labelled {one['labelled']}, first right"
                f" {one['first label right']['value']:.3f}, noise {one['noise units labelled']}, silent"
                f" {one['meaningful units without a label']}"
            )


if __name__ == "__main__":
    main()
