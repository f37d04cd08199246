"""Fit a calibration on runs whose truth is known: judged labels in, curves from score to probability out.

A label is right if it is one of the unit's true texts, but for case, punctuation and articles; of a unit with several
meanings, any of them. No label is right for a unit that means nothing. Units that were called uninterpretable count
with the labels that they would have had, and failed ones not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from dnd.api import Truth, Unit, read_truth
from dnd.config.calibration import Calibration, Fitted, Knots, Source, scorer_settings
from dnd.config.read import read_run
from dnd.config.run import UNUSED, Run
from dnd.errors import UsageError
from dnd.evaluation.tables import Row
from dnd.evaluation.text import plain
from dnd.evaluation.truth import join
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder

Kind = Literal["isotonic", "platt"]
Numbers = npt.NDArray[np.float64]
_FEWEST = 10
"""Units that a curve is fitted on at least."""
_CURVE = 33
"""Knots of a Platt curve."""


@dataclass(frozen=True)
class Judged:
    """Labels of runs and whether they are right, in the units' order."""

    units: tuple[Unit, ...]
    scores: Numbers
    """(n, 3): NaN where a unit has fewer labels."""
    right: Numbers
    """(n, 3): 1 or 0, NaN likewise."""

    def first(self) -> tuple[Numbers, Numbers]:
        """Scores and whether right of the first labels: (n,) each."""
        return self.scores[:, 0], self.right[:, 0]

    def later(self) -> tuple[Numbers, Numbers, npt.NDArray[np.int64]]:
        """Of the second and third ones, and the place of each one's unit."""
        there = ~np.isnan(self.scores[:, 1:])
        return self.scores[:, 1:][there], self.right[:, 1:][there], np.nonzero(there)[0]


def judge(folder: Path, truth: Path) -> Judged:
    """Every unit of the run that has both a truth and a label."""
    run = RunFolder(folder)
    labels = {record.unit: record.label for record in run.records()}
    rows = [Row(label.unit, (), label.status) for label in labels.values() if label.labels]
    if not rows:
        raise UsageError(f"no unit of {folder} has a label", "There is nothing to judge.")
    cases = [case for case in join(rows, read_truth(truth)) if case.truth]
    scores, right = np.full((len(cases), 3), np.nan), np.full((len(cases), 3), np.nan)
    for at, case in enumerate(cases):
        given = labels[case.row.unit].labels
        scores[at, : len(given)] = [score for _, score in given]
        right[at, : len(given)] = [_is_right(concept, case.truth) for concept, _ in given]
    return Judged(tuple(case.row.unit for case in cases), scores, right)


def _is_right(concept: str, truth: Truth | None) -> bool:
    return truth is not None and plain(concept) in {plain(text) for texts in truth.meanings for text in texts}


def together(parts: Sequence[Judged]) -> Judged:
    """Several runs as one."""
    units = tuple(unit for part in parts for unit in part.units)
    return Judged(units, np.concatenate([p.scores for p in parts]), np.concatenate([p.right for p in parts]))


def fit(sources: Sequence[tuple[Path, Path]], kind: Kind = "platt") -> Calibration:
    """From (run folder, truth file) pairs whose runs have the same scorer; UsageError where there is too little."""
    judged = [judge(folder, truth) for folder, truth in sources]
    registry = Registry.load()
    runs = [read_run(folder / "run.toml", registry) for folder, _ in sources]
    scorers = [_scorer(run, folder) for run, (folder, _) in zip(runs, sources, strict=True)]
    if any(scorer != scorers[0] for scorer in scorers):
        raise UsageError("the runs have different scorers", "A calibration is for one scorer with its settings.")
    whole = together(judged)
    curve = fit_isotonic if kind == "isotonic" else fit_platt
    first = curve(*_enough(*whole.first()))
    later = whole.later()[:2]
    return Calibration(
        scorer=scorers[0],
        first=first,
        later=curve(*later) if len(later[0]) >= _FEWEST else first,
        fitted=Fitted(
            kind=kind,
            version=metadata.version("dnd-describe"),
            date=date.today().isoformat(),
            sources=tuple(
                Source(
                    target=run.target.name,
                    digest=str(RunFolder(folder).facts.get("target", "")),
                    truth=hashlib.sha256(truth.read_bytes()).hexdigest(),
                    seed=run.seed,
                    units=len(part.units),
                )
                for run, (folder, truth), part in zip(runs, sources, judged, strict=True)
            ),
        ),
    )


def _scorer(run: Run, folder: Path) -> dict[str, object]:
    if run.scorer.name == UNUSED:
        raise UsageError(f"the run in {folder} has no scorer", "Its method's scores cannot be calibrated.")
    return {"backend": run.scorer.name, **scorer_settings(run.scorer.config)}


def _enough(scores: Numbers, right: Numbers) -> tuple[Numbers, Numbers]:
    if len(scores) < _FEWEST:
        raise UsageError(f"{len(scores)} units have a label and a truth: too few, {_FEWEST} are the least")
    if right.min() == right.max():
        what = "right" if right.min() else "wrong"
        raise UsageError(f"all {len(scores)} labels are {what}: nothing tells which scores to trust")
    return scores, right


def fit_platt(scores: Numbers, right: Numbers) -> Knots:
    """Platt's sigmoid of the score, rising or flat, with his smoothed targets: (k + 1) / (k + 2) for right, 1 / (n + 2)
    for wrong ones. Its curve is kept at 33 scores from the least to the greatest."""
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    n_right = right.sum()
    goal = np.where(right > 0, (n_right + 1) / (n_right + 2), 1 / (len(right) - n_right + 2))
    middle, spread = scores.mean(), scores.std() or 1.0
    scaled = (scores - middle) / spread

    def loss(slope_and_level: Numbers) -> tuple[float, Numbers]:
        z = slope_and_level[0] * scaled + slope_and_level[1]
        miss = 1 / (1 + np.exp(-z)) - goal
        return float((np.logaddexp(0, z) - goal * z).mean()), np.array([(miss * scaled).mean(), miss.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)])
    slope, level = found.x
    at = np.linspace(scores.min(), scores.max(), _CURVE)
    return _knots(at, 1 / (1 + np.exp(-(slope * (at - middle) / spread + level))))


def fit_isotonic(scores: Numbers, right: Numbers) -> Knots:
    """Isotonic regression: where it is level, one knot at the mean score, its share (k + 1) / (n + 2) of right ones."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    distinct, where = np.unique(scores[order], return_inverse=True)
    counts = np.bincount(where)
    shares = np.bincount(where, weights=right[order]) / counts
    ends = isotonic_regression(shares, weights=counts).blocks
    at, level, weight = [], [], []
    for start, end in pairwise(ends):
        n = counts[start:end].sum()
        at.append(np.average(distinct[start:end], weights=counts[start:end]))
        level.append(((shares[start:end] * counts[start:end]).sum() + 1) / (n + 2))
        weight.append(n)
    return _knots(np.array(at), np.array(isotonic_regression(np.array(level), weights=np.array(weight)).x))


def _knots(scores: Numbers, chances: Numbers) -> Knots:
    """Scores as they are, for some scorers' differ in the ninth digit only; equal ones once."""
    return tuple({float(s): round(float(c), 5) for s, c in zip(scores, chances, strict=True)}.items())
