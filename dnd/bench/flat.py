"""The bench's numbers for other programs: a line per combination, and a line per unit of each run."""

from __future__ import annotations

from dnd.bench.compare import Bench
from dnd.bench.table import figures_of, kinds_of

Lines = list[dict[str, object]]
"""All with the same keys in the same order; None where there is nothing."""


def combination_lines(bench: Bench) -> Lines:
    return [
        {
            "combination": outcome.name,
            **{axis: outcome.variants.get(axis) for axis in _axes(bench)},
            "failed": outcome.reason or None,
            "runs": len(bench.runs[outcome.name]),
            "labelled": outcome.counts.get("labelled", 0),
            "units": outcome.units,
            **_figures(bench, outcome.name),
            **{
                f"{kind}_{what}": outcome.kinds[kind][place] if kind in outcome.kinds else None
                for kind in kinds_of(bench)
                for place, what in enumerate(("right", "total"))
            },
            **_costs(bench, outcome.name),
        }
        for outcome in bench.outcomes
    ]


def _figures(bench: Bench, name: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for figure in figures_of(bench):
        one = bench.figures[figure].get(name)
        found |= {figure: one and one.value, f"{figure}_low": one and one.low, f"{figure}_high": one and one.high}
    return found


def _costs(bench: Bench, name: str) -> dict[str, object]:
    cost, price = bench.costs.get(name), bench.price(name)
    return {
        "seconds_alone": None if cost is None or cost.alone is None else round(cost.alone, 3),
        "seconds_here": cost and round(cost.here, 3),
        "seconds_per_right_label": None if price is None else round(price, 4),
        "images": cost and cost.images,
        "tokens": cost and cost.tokens,
    }


def unit_lines(bench: Bench) -> Lines:
    """Of all runs that did not fail."""
    found: Lines = []
    for name, runs in bench.runs.items():
        for run in runs:
            units = dict.fromkeys([*run.labels, *(unit for values in run.values.values() for unit in values)])
            found += [
                {
                    "combination": name,
                    **{axis: run.variants.get(axis) for axis in _axes(bench)},
                    "repeat": run.repeat,
                    "unit": unit,
                    "label": run.labels.get(unit) or None,
                    **{figure: run.values.get(figure, {}).get(unit) for figure in figures_of(bench)},
                }
                for unit in units
                if not run.failed
            ]
    return found


def _axes(bench: Bench) -> list[str]:
    return list(dict.fromkeys(axis for outcome in bench.outcomes for axis in outcome.variants))
