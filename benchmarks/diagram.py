"""The reliability diagram and the risk-coverage curve as one SVG, drawn with nothing but text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dnd.config.calibration import Calibration
from dnd.evaluation.reliability import reliability, risk_coverage

SIDE, GAP = 300, 70
LINE, SOFT = "#1f5fa8", "#9a9a9a"


def draw(pooled: tuple[Any, Any], calibration: Calibration) -> str:
    """Confidence against the share that is right, the curve from score to confidence, accuracy against coverage."""
    found = reliability(*pooled)
    width, height = 3 * SIDE + 4 * GAP, SIDE + 2 * GAP
    body = [
        *_panel(0, "Reliability", "confidence", "share that is right"),
        _path(0, [(0, 0), (1, 1)], SOFT, dashed=True),
        *_bins(found),
        *_panel(1, "From score to confidence", "score", "confidence"),
        _path(1, list(calibration.first), LINE),
        _path(1, list(calibration.later), SOFT),
        _text(*_at(1, 0.62, 0.30), "first label", LINE),
        _text(*_at(1, 0.62, 0.22), "later labels", SOFT),
        *_panel(2, "Risk and coverage", "share of units with a label", "share of labels that is right"),
        _path(2, [(cover, share) for _, cover, share in risk_coverage(*pooled)], LINE),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif"'
        f' font-size="13"><title>Confidence on {found.n} units that it was not fitted on</title>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{"".join(body)}</svg>\n'
    )


def _at(panel: int, x: float, y: float) -> tuple[float, float]:
    return GAP + panel * (SIDE + GAP) + x * SIDE, GAP + (1 - y) * SIDE


def _panel(panel: int, title: str, across: str, up: str) -> Iterator[str]:
    left, top = _at(panel, 0, 1)
    yield f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#444444"/>'
    yield _text(left + SIDE / 2, top - 18, title, "#111111", "middle")
    yield _text(left + SIDE / 2, top + SIDE + 42, across, "#111111", "middle")
    x, y = left - 40, top + SIDE / 2
    yield f'<text x="{x}" y="{y}" fill="#111111" text-anchor="middle" transform="rotate(-90 {x} {y})">{up}</text>'
    for tick in (0.0, 0.5, 1.0):
        yield _text(left + tick * SIDE, top + SIDE + 20, f"{tick:g}", "#444444", "middle")
        yield _text(left - 8, top + (1 - tick) * SIDE + 4, f"{tick:g}", "#444444", "end")


def _bins(found: Any) -> Iterator[str]:
    for one in found.bins:
        x, low = _at(0, one.confidence, one.right.low)
        _, high = _at(0, one.confidence, one.right.high)
        _, y = _at(0, one.confidence, one.right.value)
        yield f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{LINE}"/>'
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{LINE}"/>'
        yield _text(x + 7, y + (14 if one.right.value > 0.5 else -6), str(one.n), "#444444")


def _path(panel: int, points: list[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_at(panel, *point) for point in points))
    style = ' stroke-dasharray="4 4"' if dashed else ' stroke-width="2"'
    return f'<polyline points="{places}" fill="none" stroke="{colour}"{style}/>'


def _text(x: float, y: float, words: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{words}</text>'
