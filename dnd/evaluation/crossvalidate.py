"""Reliability on units that a calibration was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnd.config.calibration import CalibrationFile, absolute, read_off
from dnd.config.read import read_run
from dnd.config.run import UNUSED
from dnd.errors import UsageError
from dnd.evaluation.calibrate import Judged, Kind, Numbers, fit_isotonic, fit_platt, judge, together
from dnd.evaluation.reliability import Reliability, reliability
from dnd.plugin.registry import Registry

_FOLDS = 10


def checked(name: str, sources: Sequence[tuple[Path, Path]]) -> dict[str, Reliability]:
    """Of a calibration file on (run folder, truth file) pairs; UsageError where it is for another scorer."""
    file, registry = CalibrationFile(absolute(name)), Registry.load()
    for folder, _ in sources:
        run = read_run(folder / "run.toml", registry, settings=["labels.calibration=none"])
        if run.scorer.name == UNUSED:
            raise UsageError(f"the run in {folder} has no scorer", "Its method's scores are no confidences.")
        file.check(run.scorer.name, run.scorer.config)
    judged = together([judge(*source) for source in sources])
    first, later = judged.first(), judged.later()
    parts = {
        "first labels": (file.content.first, *first, np.arange(len(first[0]))),
        "later labels": (file.content.later, *later),
    }
    return {
        name: reliability(np.array([read_off(knots, score) for score in scores]), right, units)
        for name, (knots, scores, right, units) in parts.items()
        if len(scores)
    }


def crossed(judged: Judged, kind: Kind, seed: int = 0) -> dict[str, Reliability]:
    """Each tenth of the units by a curve fitted on the other nine."""
    fold = np.random.default_rng(seed).permutation(len(judged.units)) % _FOLDS
    found = {}
    for part, columns in (("first labels", [0]), ("later labels", [1, 2])):
        confidence, outcome, units = _crossed(judged, fold, columns, kind)
        if len(outcome):
            found[part] = reliability(confidence, outcome, units)
    return found


def _crossed(
    judged: Judged, fold: npt.NDArray[np.int64], columns: list[int], kind: Kind
) -> tuple[Numbers, Numbers, npt.NDArray[np.int64]]:
    """Confidence, whether right and the unit's place of each label."""
    curve = fit_isotonic if kind == "isotonic" else fit_platt
    scores, right = judged.scores[:, columns], judged.right[:, columns]
    present = ~np.isnan(scores)
    confidence = np.full(scores.shape, np.nan)
    for number in range(_FOLDS):
        held = fold == number
        ours, theirs = present & ~held[:, None], present & held[:, None]
        if ours.any() and theirs.any():
            knots = curve(scores[ours], right[ours])
            confidence[theirs] = [read_off(knots, score) for score in scores[theirs]]
    known = ~np.isnan(confidence)
    return confidence[known], right[known], np.nonzero(known)[0]
