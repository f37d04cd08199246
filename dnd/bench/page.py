"""The bench's files: JSON, Markdown, tables as CSV and Parquet, the plot, and a page in the look of the report."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from dnd.bench.compare import Bench
from dnd.bench.flat import Lines, combination_lines, unit_lines
from dnd.bench.plot import axes, plot
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
from dnd.evaluation.intervals import Estimate
from dnd.store.files import write_atomic
from dnd.text import json_text, spreadsheet_lines

_STYLE = """
html, body { height: auto; }
html { overflow-y: auto; }
.page { max-width: 1400px; width: 100%; }
.wide th, .wide td { white-space: nowrap; overflow-wrap: normal; }
.wide th:nth-child(2), .wide td:nth-child(2) { position: sticky; left: 0; background: var(--card); }
.wide .failed td { color: var(--bad); white-space: normal; }
.wide .interval { margin-top: 2px; }
.wide .meter { width: 90px; }
figure { overflow-x: auto; }
figure svg { height: auto; min-width: 640px; max-width: 1000px; }
figure svg text { font-size: 12px; }
figure rect[fill="#ffffff"] { fill: none; }
figure text[fill="#222222"] { fill: var(--ink); }
figure text[fill="#a3262c"] { fill: var(--bad); }
figure [stroke="#a3262c"] { stroke: var(--bad); }
figure [stroke="#eeeeee"] { stroke: var(--line); }
figure [stroke="#444444"] { stroke: var(--soft); }
header { flex-wrap: wrap; gap: 4px 18px; position: sticky; top: 0; z-index: 2; }
header nav { flex-wrap: wrap; }
.card { scroll-margin-top: 90px; }
@media print { .wide th:nth-child(2), .wide td:nth-child(2) { position: static; } }
"""
"""Beside the report's own style sheet; the plot's colours follow the page's, light or dark."""


def write_bench(out: Path, bench: Bench, title: str) -> None:
    """All of them into the bench's folder."""
    text = json_text(bench.record(), indent=1)
    write_atomic(out / "bench.json", (text + "\n").encode())
    write_atomic(out / "bench.md", markdown(bench, title).encode())
    plots = [drawn for axis in axes(bench) or [""] if (drawn := plot(bench, axis))]
    if plots:
        write_atomic(out / "bench.svg", plots[0].encode())
    for name, lines in (("bench", combination_lines(bench)), ("bench-units", unit_lines(bench))):
        _write_table(out / name, lines)
    links = {one.name: f"runs/{one.folder}/report/index.html" for one in bench.outcomes}
    there = {name: link for name, link in links.items() if (out / link).is_file()}
    write_atomic(out / "bench.html", page(bench, title, plots, there).encode())


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


def page(bench: Bench, title: str, plots: Sequence[str] = (), reports: Mapping[str, str] | None = None) -> str:
    """One page without scripts or links to elsewhere, in the look of the report; `reports` are those of its runs."""
    style = resources.files("dnd.results.report").joinpath("page/report.css").read_text("utf-8") + _STYLE
    cards = {
        "Combinations": _combinations(bench, reports or {})
        + "".join(f'<p class="note">{_code(note)}</p>' for note in notes(bench)),
        "Quality and cost": "".join(f"<figure>{drawn}</figure>" for drawn in plots),
        "Main effects": bench.effects
        and f'<p class="note">{EFFECT_NOTE}</p>{_table(EFFECT_COLUMNS, map(_plain_row, effect_rows(bench)))}',
        "Stages": _table(STAGE_COLUMNS, map(_plain_row, stage_rows(bench))),
    }
    shown = {head: body for head, body in cards.items() if body}
    links = "".join(f'<a href="#{_anchor(head)}">{head}</a>' for head in shown)
    body = "".join(f'<section class="card" id="{_anchor(h)}"><h2>{h}</h2>{body}</section>' for h, body in shown.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="color-scheme" content="light dark"><style>{style}</style></head><body data-view="bench"><header>'
        f'<span class="brand"><span aria-hidden="true" class="mark"></span><span>dnd bench</span></span>'
        f'<nav aria-label="Parts">{links}</nav></header>'
        f'<main class="page"><h1>{escape(title)}</h1>{body}</main></body></html>\n'
    )


def _anchor(head: str) -> str:
    return head.lower().replace(" ", "-")


def _combinations(bench: Bench, links: Mapping[str, str]) -> str:
    """The table, with the ranked figure's interval and the shares of the kinds drawn beside their numbers."""
    heads, metric = columns(bench), bench.metric or ""
    of_metric = heads.index(short(metric)) if metric else -1
    kinds = {heads.index(kind): kind for kind in kinds_of(bench)}
    lines = []
    for outcome, row in zip([*ranked(bench), *bench.failed], rows(bench), strict=True):
        if len(row) < len(heads):  # a failed combination: its reason over all the rest
            number, name, reason = map(escape, row)
            lines.append(
                f'<tr class="failed"><td>{number}</td><td>{name}</td><td colspan="{len(heads) - 2}">{reason}</td></tr>'
            )
            continue
        cells = [_linked(cell, links) for cell in row]
        if estimate := bench.figures.get(metric, {}).get(outcome.name):
            cells[of_metric] += _interval(estimate)
        for place, kind in kinds.items():
            right, total = outcome.kinds.get(kind, (0, 0))
            cells[place] += _meter(right / total) if total else ""
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return _table(heads, lines)


def _table(heads: Sequence[str], lines: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return (
        f'<div class="scroller" tabindex="0"><table class="wide"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _plain_row(line: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>"


def _linked(cell: str, links: Mapping[str, str]) -> str:
    """An interval's ends stay together; a combination leads to its report."""
    text, link = escape(cell).replace(", ", ",&nbsp;"), links.get(cell.removesuffix(" *"))
    return f'<a href="{escape(quote(link))}">{text}</a>' if link else text


def _interval(estimate: Estimate) -> str:
    """As charts.js of the report draws one, from 0 to 1 or as far as it reaches."""
    least, most = min(0.0, estimate.low), max(1.0, estimate.high)
    value, low, high = (4 + (x - least) / (most - least) * 292 for x in (estimate.value, estimate.low, estimate.high))
    return (
        '<svg viewBox="0 0 300 16" class="interval" aria-hidden="true">'
        '<line x1="4" x2="296" y1="8" y2="8" class="axis"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="8" y2="8" class="range"/>'
        f'<circle cx="{value:.1f}" cy="8" r="4" class="dot"/></svg>'
    )


def _meter(share: float) -> str:
    return f'<span class="meter" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></span>'


def _code(note: str) -> str:
    """What stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(note))
