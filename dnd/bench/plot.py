"""Quality over cost as a picture: every combination's number at its dot, the dots coloured by one axis."""

from __future__ import annotations

import math

from dnd.analysis.svg import Drawing
from dnd.bench.compare import Bench
from dnd.bench.table import ranked, short

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 900, 520, 70, 60, 56, 30
_FRONT, _GRID, _INTERVAL, _AXIS = "#a3262c", "#eeeeee", "#b9c0cb", "#444444"
_COLOURS = ("#4c78a8", "#e8871e", "#54a24b", "#b279a2", "#e45756", "#2f9c95", "#9d755d", "#c9a227")
_OTHER = "#8b93a1"


def axes(bench: Bench) -> list[str]:
    """Those with several variants, of the largest main effect first."""
    variants: dict[str, set[str]] = {}
    for outcome in bench.outcomes:
        for axis, variant in outcome.variants.items():
            variants.setdefault(axis, set()).add(variant)
    most = dict.fromkeys(variants, 0.0)
    for effect in bench.effects:
        most[effect.axis] = max(most[effect.axis], abs(effect.estimate.value))
    return sorted((axis for axis, own in variants.items() if len(own) > 1), key=lambda axis: -most[axis])


def plot(bench: Bench, axis: str = "") -> str | None:
    """Coloured by the axis, if one is named; None where no combination has both a quality and a cost."""
    levels = bench.figures.get(bench.metric or "", {})
    points = [(n, cost, e) for n, e in levels.items() if (cost := bench.costs[n].alone) is not None and cost > 0]
    if not points:
        return None
    low, high = min(c for _, c, _ in points) / 1.3, max(c for _, c, _ in points) * 1.3
    top = max(e.high for *_, e in points)
    floor, ceiling = min(0.0, *(e.low for *_, e in points)), 1.0 if top <= 1 else top

    def place(cost: float, quality: float) -> tuple[float, float]:
        across, up = math.log(cost / low) / math.log(high / low), (quality - floor) / (ceiling - floor)
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * across, _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * up

    drawing = Drawing(f"{bench.metric} over cost", width=_WIDTH, height=_HEIGHT)
    for cost in _ticks(low, high):
        drawing.line([place(cost, floor), place(cost, ceiling)], _GRID)
        drawing.text(place(cost, floor)[0], _HEIGHT - _BOTTOM + 18, f"{cost:g}", anchor="middle")
    for quality in (floor + (ceiling - floor) * step / 5 for step in range(6)):
        drawing.line([place(low, quality), place(high, quality)], _GRID)
        drawing.text(_LEFT - 8, place(low, quality)[1] + 4, f"{quality:.2g}", anchor="end")
    drawing.line([place(low, ceiling), place(low, floor), place(high, floor)], _AXIS)
    drawing.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, "seconds alone, logarithmic", anchor="middle")
    drawing.text(_LEFT, 18, f"{short(bench.metric or '')}, with 95 % intervals; numbers as in the table")
    drawing.text(_WIDTH - _RIGHT, 18, "line: none is both better and cheaper", anchor="end", colour=_FRONT)
    colours = _legend(drawing, bench, axis, [name for name, *_ in points])
    drawing.line([place(c, q) for c, q in sorted((c, e.value) for n, c, e in points if n in bench.front)], _FRONT)
    places = {outcome.name: place for place, outcome in enumerate(ranked(bench), 1)}
    for name, cost, e in sorted(points, key=lambda point: -point[2].value):
        x, y = place(cost, e.value)
        drawing.line([place(cost, e.low), place(cost, e.high)], _INTERVAL)
        drawing.dot(x, y, colours[name], f"{places[name]} {name}: {e.value:.3f}, {cost:.1f} s")
        words = f"{places[name]} {name}" if name in bench.front else str(places[name])
        left = x > _WIDTH * 0.7
        drawing.text(x + (-9 if left else 9), y - 7, words, anchor="end" if left else "start")
    return drawing.svg()


def _legend(drawing: Drawing, bench: Bench, axis: str, names: list[str]) -> dict[str, str]:
    """Combination -> its colour; the axis's variants are written over the plot."""
    variants = {one.name: one.variants.get(axis, "") for one in bench.outcomes if one.name in names}
    known = list(dict.fromkeys(variant for variant in variants.values() if variant))
    colours = {variant: _COLOURS[place % len(_COLOURS)] for place, variant in enumerate(known)}
    x = float(_LEFT)
    shown = [f"{axis}:", *known, *(["others"] if "" in variants.values() else [])] if known else []
    for variant in shown:
        if variant != shown[0]:
            drawing.dot(x + 6, 36, colours.get(variant, _OTHER), "")
            x += 16
        drawing.text(x, 40, variant)
        x += 7.0 * len(variant) + 14
    return {name: colours.get(variant, _OTHER) for name, variant in variants.items()}


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]
