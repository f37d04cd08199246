"""The reliability diagram and the risk-coverage curve as one SVG."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dnd.analysis.svg import Drawing
from dnd.config.calibration import Calibration
from dnd.evaluation.reliability import Numbers, reliability

SIDE, GAP = 300, 70
LINE, SOFT, INK = "#3a55c9", "#9a9a9a", "#444444"


def draw(pooled: tuple[Any, Any], calibration: Calibration) -> str:
    """Confidence against the share that is right, the curve from score to confidence, accuracy against coverage."""
    found = reliability(*pooled)
    title = f"Confidence on {found.n} units that it was not fitted on"
    drawing = Drawing(title, width=3 * SIDE + 4 * GAP, height=SIDE + 2 * GAP)
    _panel(drawing, 0, "Reliability", "confidence", "share that is right")
    drawing.line(_places(0, [(0, 0), (1, 1)]), SOFT, dashed=True)
    for one in found.bins:
        x, y = _at(0, one.confidence, one.right.value)
        drawing.line(_places(0, [(one.confidence, one.right.low), (one.confidence, one.right.high)]), LINE)
        drawing.dot(x, y, LINE, f"{one.n} labels of confidence {one.confidence:.2f}: {one.right.value:.2f} right")
        drawing.text(x + 7, y + (14 if one.right.value > 0.5 else -6), str(one.n), colour=INK)
    _panel(drawing, 1, "From score to confidence", "score", "confidence")
    for curve, name, colour, height in (
        (calibration.first, "first label", LINE, 0.30),
        (calibration.later, "later labels", SOFT, 0.22),
    ):
        drawing.line(_places(1, curve), colour)
        drawing.text(*_at(1, 0.62, height), name, colour=colour)
    _panel(drawing, 2, "Risk and coverage", "share of units with a label", "share of labels that is right")
    drawing.line(_places(2, [(cover, share) for _, cover, share in risk_coverage(*pooled)]), LINE)
    return drawing.svg()


def _at(panel: int, x: float, y: float) -> tuple[float, float]:
    return GAP + panel * (SIDE + GAP) + x * SIDE, GAP + (1 - y) * SIDE


def _places(panel: int, points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    return [_at(panel, *point) for point in points]


def _panel(drawing: Drawing, panel: int, title: str, across: str, up: str) -> None:
    left, top = _at(panel, 0, 1)
    drawing.line(_places(panel, [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]), INK)
    drawing.text(left + SIDE / 2, top - 18, title, anchor="middle")
    drawing.text(left + SIDE / 2, top + SIDE + 42, across, anchor="middle")
    drawing.text(left - 40, top + SIDE / 2, up, anchor="middle", turn=-90)
    for tick in (0.0, 0.5, 1.0):
        drawing.text(left + tick * SIDE, top + SIDE + 20, f"{tick:g}", anchor="middle", colour=INK)
        drawing.text(left - 8, top + (1 - tick) * SIDE + 4, f"{tick:g}", anchor="end", colour=INK)


def risk_coverage(confidence: Numbers, right: Numbers) -> list[tuple[float, float, float]]:
    """(least confidence, share of units that keep their label, share of those labels that is right), most demanding
    first; equal confidences go together."""
    order = np.argsort(-confidence, kind="stable")
    ordered, hits = confidence[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True))
    return [(float(ordered[i]), (i + 1) / len(right), float(hits[i] / (i + 1))) for i in last]
