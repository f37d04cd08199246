"""Quality over cost as an SVG drawing, the Pareto front marked. No library: a picture of points and one line."""

from __future__ import annotations

import math
from html import escape

from dnd.bench.compare import Bench

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 900, 520, 70, 60, 30, 30
_STEPS = (1, 2, 5)


def plot(bench: Bench) -> str | None:
    """None where no combination has both a quality and a cost."""
    levels = bench.figures.get(bench.metric or "", {})
    points = [(n, cost, e) for n, e in levels.items() if (cost := bench.costs[n].alone) is not None and cost > 0]
    if not points:
        return None
    low, high = min(c for _, c, _ in points) / 1.3, max(c for _, c, _ in points) * 1.3
    top = max(e.high for *_, e in points)
    ceiling = 1.0 if top <= 1 else top
    floor = min(0.0, *(e.low for *_, e in points))

    def x(cost: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * math.log(cost / low) / math.log(high / low)

    def y(quality: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (quality - floor) / (ceiling - floor)

    parts = [
        _frame(bench.metric or "", [(x(c), c) for c in _ticks(low, high)], [(y(q), q) for q in _five(floor, ceiling)])
    ]
    front = sorted((cost, e.value) for name, cost, e in points if name in bench.front)
    parts.append(f'<polyline class="front" points="{" ".join(f"{x(c):.1f},{y(q):.1f}" for c, q in front)}"/>')
    taken: list[tuple[float, float]] = []
    for name, cost, e in sorted(points, key=lambda point: -point[2].value):
        at, height, kind = x(cost), y(e.value), "on" if name in bench.front else "off"
        parts.append(f'<line class="bar" x1="{at:.1f}" x2="{at:.1f}" y1="{y(e.low):.1f}" y2="{y(e.high):.1f}"/>')
        told = f"{name}: {e.value:.3f}, {cost:.1f} s"
        parts.append(
            f'<circle class="{kind}" cx="{at:.1f}" cy="{height:.1f}" r="5"><title>{escape(told)}</title></circle>'
        )
        if name in bench.front and all(abs(at - a) > 90 or abs(height - h) > 13 for a, h in taken):
            taken.append((at, height))
            end = "end" if at > _WIDTH * 0.7 else "start"
            parts.append(
                f'<text x="{at + (-9 if end == "end" else 9):.1f}" y="{height - 7:.1f}" text-anchor="{end}">'
                f"{escape(name)}</text>"
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-family="sans-serif" '
        f'font-size="12">{_STYLE}{"".join(parts)}</svg>\n'
    )


_STYLE = (
    "<style>.front{fill:none;stroke:#b30;stroke-width:1.5}.on{fill:#b30}.off{fill:#68a}.bar{stroke:#bbb}"
    ".grid{stroke:#eee}.axis{stroke:#444}</style>"
)


def _frame(metric: str, across: list[tuple[float, float]], up: list[tuple[float, float]]) -> str:
    parts = ['<rect width="100%" height="100%" fill="#fff"/>']
    bottom = _HEIGHT - _BOTTOM
    for at, value in across:
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>')
    for at, value in up:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{bottom}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 14}" text-anchor="middle">seconds alone, logarithmic</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 10}">{escape(metric)}, with 95 % intervals</text>')
    legend = "red: none is both better and cheaper"
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_TOP - 10}" text-anchor="end">{legend}</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in _STEPS if low <= step * 10.0**power <= high]


def _five(low: float, high: float) -> list[float]:
    return [low + (high - low) * i / 5 for i in range(6)]
