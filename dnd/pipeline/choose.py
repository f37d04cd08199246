"""From scores to labels: which candidates explain a unit, and whether any of them does.

A unit is called uninterpretable unless the synthetic images of its best candidate activate it clearly more than random
probing images do, and more than the images of other units' labels (dnd/pipeline/controls.py). The measure is
`dnd.api.auc`, the area under the ROC curve: the chance that a synthetic image of the candidate activates the unit more
than an image of the others, 0.5 where there is no difference. A run file may set a least score too, or a least
confidence (dnd/config/calibration.py).
How the thresholds were found is in docs/method.md and benchmarks/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dnd.api import N_LABELS, Label, Unit
from dnd.config.calibration import Calibration


def choose(
    unit: Unit,
    scores: Mapping[str, float],
    aucs: Mapping[str, float],
    control_aucs: Mapping[str, float] = MappingProxyType({}),
    *,
    min_auc: float,
    min_score: float | None = None,
    calibration: Calibration | None = None,
    min_confidence: float = 0.0,
    first: Sequence[str] = (),
) -> Label:
    """The unit's best concepts by score (ties: the earlier candidate), or why it has none.

    `scores`, `aucs` and `control_aucs` are by candidate. `min_auc` is the least AUC of the best candidate, of either
    kind that it has, and `min_score` its least score. `min_confidence` is its least confidence, where there is a
    `calibration`. Candidates in `first` come before all others.
    """
    if not scores:
        return Label(unit, "uninterpretable", (), "no candidate concept")
    order = sorted(scores, key=lambda concept: (concept not in first, -scores[concept]))
    best = tuple((concept, float(scores[concept])) for concept in order[:N_LABELS])
    sure = calibration.confidences([score for _, score in best]) if calibration else ()
    top, score = best[0]
    if top in aucs and aucs[top] < min_auc:
        reason = f"images of {top!r} drive it little more than random ones: {aucs[top]:.2f} < {min_auc:.2f}"
        return Label(unit, "uninterpretable", best, reason, sure)
    if top in control_aucs and control_aucs[top] < min_auc:
        value = f"{control_aucs[top]:.2f} < {min_auc:.2f}"
        reason = f"images of {top!r} drive it little more than those of other units' labels: {value}"
        return Label(unit, "uninterpretable", best, reason, sure)
    if min_score is not None and score < min_score:
        reason = f"{top!r} explains too little of what drives it: score {score:.2f} < {min_score:.2f}"
        return Label(unit, "uninterpretable", best, reason, sure)
    if sure and sure[0] < min_confidence:
        reason = f"{top!r} is too likely to be wrong: confidence {sure[0]:.2f} < {min_confidence:.2f}"
        return Label(unit, "uninterpretable", best, reason, sure)
    return Label(unit, "labelled", best, confidences=sure)
