"""From scores to labels: which candidates explain a unit, and whether any of them does.

A unit is called uninterpretable unless the synthetic images of its best candidate drive it clearly more
than ordinary probing images do. The measure is `dnd.api.auc`, the area under the ROC curve: the chance that a
synthetic image of the candidate moves the unit more than a random probing image, 0.5 where there is no
difference. A run file may ask for a least score too, or for a least confidence (dnd/config/calibration.py).
docs/method.md and benchmarks/RESULTS.md say how the thresholds were found.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnd.api import N_LABELS, Label, Unit
from dnd.config.calibration import Calibration


def choose(
    unit: Unit,
    concepts: Sequence[str],
    scores: Sequence[float],
    drives: Sequence[float],
    *,
    min_drive: float,
    min_score: float | None = None,
    calibration: Calibration | None = None,
    min_confidence: float = 0.0,
) -> Label:
    """The unit's best concepts by score (ties: the earlier candidate), or why it has none.

    `min_drive` is what the best candidate's `drive` must reach, `min_score` what its score must; without `drives`
    the first is not asked. `min_confidence` is what the best's confidence must reach, where a `calibration` gives the
    labels one.
    """
    if not concepts:
        return Label(unit, "uninterpretable", (), "no candidate concept")
    order = sorted(range(len(concepts)), key=lambda i: (-scores[i], i))
    best = tuple((concepts[i], float(scores[i])) for i in order[:N_LABELS])
    sure = calibration.confidences([score for _, score in best]) if calibration else ()
    top = order[0]
    if drives and drives[top] < min_drive:
        reason = (
            f"images of {concepts[top]!r} drive it little more than random ones: {drives[top]:.2f} < {min_drive:.2f}"
        )
        return Label(unit, "uninterpretable", best, reason, sure)
    if min_score is not None and scores[top] < min_score:
        reason = f"{concepts[top]!r} explains too little of what drives it: score {scores[top]:.2f} < {min_score:.2f}"
        return Label(unit, "uninterpretable", best, reason, sure)
    if sure and sure[0] < min_confidence:
        reason = f"{concepts[top]!r} is too likely to be wrong: confidence {sure[0]:.2f} < {min_confidence:.2f}"
        return Label(unit, "uninterpretable", best, reason, sure)
    return Label(unit, "labelled", best, confidences=sure)
