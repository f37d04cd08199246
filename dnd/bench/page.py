"""The bench's files: JSON, Markdown, tables as CSV and Parquet, and a page in the look and charts of the report."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dnd.bench.compare import Bench
from dnd.bench.flat import Lines, combination_lines, unit_lines
from dnd.bench.table import (
    EFFECT_COLUMNS,
    EFFECT_NOTE,
    STAGE_COLUMNS,
    columns,
    effect_rows,
    kinds_of,
    markdown,
    notes,
    ranked,
    rows,
    short,
    stage_rows,
)
from dnd.evaluation.intervals import Estimate, tidy
from dnd.results.report.single import policy
from dnd.store.files import write_atomic
from dnd.text import json_text, spreadsheet_lines

Cell = str | dict[str, Any]
"""What bench.js draws: a text, or one with a value and its interval, a share, or links to runs."""


def write_bench(out: Path, bench: Bench, title: str) -> None:
    """All of them into the bench's folder."""
    text = json_text(bench.record(), indent=1)
    write_atomic(out / "bench.json", (text + "\n").encode())
    write_atomic(out / "bench.md", markdown(bench, title).encode())
    for name, lines in (("bench", combination_lines(bench)), ("bench-units", unit_lines(bench))):
        _write_table(out / name, lines)
    write_atomic(out / "bench.html", page(bench, title, out).encode())


def _write_table(file: Path, lines: Lines) -> None:
    """As file.csv and file.parquet; a column without any value is one of texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    heads = list(lines[0]) if lines else []
    cells = ([line[head] for head in heads] for line in lines)
    write_atomic(file.with_suffix(".csv"), "".join(spreadsheet_lines([heads, *cells])).encode())
    table = pa.Table.from_pylist(lines)
    empty = [pa.types.is_null(kind) for kind in table.schema.types]
    fields = [pa.field(one.name, pa.string()) if no else one for one, no in zip(table.schema, empty, strict=True)]
    written = io.BytesIO()
    pq.write_table(table.cast(pa.schema(fields)), written)
    write_atomic(file.with_suffix(".parquet"), written.getvalue())


def page(bench: Bench, title: str, out: Path) -> str:
    """One file that asks for nothing else; what it draws is data that nothing runs. Runs are linked as they lie in
    `out`: to the report, where there is one."""
    report, own = resources.files("dnd.results.report").joinpath("page"), resources.files("dnd.bench").joinpath("web")
    style = report.joinpath("report.css").read_text("utf-8") + own.joinpath("bench.css").read_text("utf-8")
    files = report.joinpath("core.js"), report.joinpath("charts.js"), own.joinpath("bench.js")
    scripts = [file.read_text("utf-8") for file in files]
    filled = {
        "POLICY": policy(style, scripts),
        "TITLE": escape(title),
        "STYLE": style,
        "DATA": json_text(_data(bench, out)).replace("<", "\\u003c"),
        "SCRIPTS": "".join(f"<script>{text}</script>\n" for text in scripts),
    }
    parts = own.joinpath("bench.html").read_text("utf-8").split("@")
    return "".join(filled.get(part, part) for part in parts)


def _data(bench: Bench, out: Path) -> dict[str, Any]:
    return {
        "metric": short(bench.metric or ""),
        "axes": _axes(bench),
        "points": _points(bench),
        "combinations": {"heads": columns(bench), "rows": _combinations(bench, out)},
        "notes": notes(bench),
        "effects": {"heads": EFFECT_COLUMNS, "rows": _effects(bench), "note": EFFECT_NOTE},
        "stages": {"heads": STAGE_COLUMNS, "rows": stage_rows(bench)},
    }


def _axes(bench: Bench) -> list[str]:
    """Those with several variants, of the largest main effect first."""
    variants: dict[str, set[str]] = {}
    for outcome in bench.outcomes:
        for axis, variant in outcome.variants.items():
            variants.setdefault(axis, set()).add(variant)
    most = dict.fromkeys(variants, 0.0)
    for effect in bench.effects:
        most[effect.axis] = max(most[effect.axis], abs(effect.estimate.value))
    return sorted((axis for axis, own in variants.items() if len(own) > 1), key=lambda axis: -most[axis])


def _points(bench: Bench) -> list[dict[str, Any]]:
    """The dots of the plot: what has both a quality and a cost, numbered as in the table."""
    levels = bench.figures.get(bench.metric or "", {})
    return [
        {
            "number": place,
            "name": one.name,
            "x": cost,
            "y": _interval(levels[one.name]),
            "variants": dict(one.variants),
            "isFront": one.name in bench.front,
        }
        for place, one in enumerate(ranked(bench), 1)
        if one.name in levels and (cost := bench.costs[one.name].alone)
    ]


def _combinations(bench: Bench, out: Path) -> list[list[Cell]]:
    """The table, with the ranked figure, the differences and the shares of the kinds to be drawn."""
    heads, metric = columns(bench), bench.metric or ""
    kinds = {heads.index(kind): kind for kind in kinds_of(bench)}
    found: list[list[Cell]] = []
    for outcome, row in zip([*ranked(bench), *bench.failed], rows(bench), strict=True):
        cells: list[Cell] = [*row]
        cells[1] = {"text": row[1], "runs": [_link(out, run.folder) for run in bench.runs[outcome.name]]}
        if not outcome.failed:
            if estimate := bench.figures.get(metric, {}).get(outcome.name):
                at = heads.index(short(metric))
                cells[at] = {"text": row[at], "value": _interval(estimate)}
            if outcome.name == bench.reference and metric:
                cells[heads.index(f"against {bench.reference}")] = {"text": "(reference)"}  # sorted as 0
            elif apart := bench.against(outcome.name):
                at = heads.index(f"against {bench.reference}")
                cells[at] = {"text": row[at], "value": _interval(apart.estimate), "difference": True}
            for at, kind in kinds.items():
                right, total = outcome.kinds.get(kind, (0, 0))
                cells[at] = {"text": row[at], "share": right / total} if total else row[at]
        found.append(cells)
    return found


def _effects(bench: Bench) -> list[list[Cell]]:
    at = EFFECT_COLUMNS.index("difference")
    return [
        [*row[:at], {"text": row[at], "value": _interval(one.estimate), "difference": True}, *row[at + 1 :]]
        for one, row in zip(bench.effects, effect_rows(bench), strict=True)
    ]


def _link(out: Path, folder: str) -> str:
    """A run's report; its folder where none was built."""
    report = f"runs/{folder}/report/index.html"
    return quote(report if (out / report).is_file() else f"runs/{folder}/")


def _interval(estimate: Estimate) -> Sequence[float | None]:
    return [tidy(value) for value in (estimate.value, estimate.low, estimate.high)]
