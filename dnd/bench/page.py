"""The bench's files: bench.json, bench.md, bench.html with the plot in it, the plot alone, the table as CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from dnd.bench.compare import Bench
from dnd.bench.plot import plot
from dnd.bench.table import STAGE_COLUMNS, columns, csv_table, markdown, notes, rows, stage_rows
from dnd.store.files import write_atomic
from dnd.text import csv_lines, json_text

_STYLE = """
body { display: block; max-width: 1400px; margin: 0 auto; padding: 26px 30px 60px; height: auto; }
html { height: auto; overflow-y: auto; }
th:nth-child(2), td:nth-child(2) { position: sticky; left: 0; background: var(--ground); }
th, td { white-space: nowrap; overflow-wrap: normal; }
.failed td { color: var(--bad); white-space: normal; }
p { margin: 4px 0; color: var(--soft); font-size: 0.87rem; }
h1, h2 { margin: 12px 0; }
svg { height: auto; max-width: 1000px; margin: 18px 0; border-radius: 12px; }
@media print { th:nth-child(2), td:nth-child(2) { position: static; } }
"""
"""Beside the report's own style sheet."""


def write_bench(out: Path, bench: Bench, title: str) -> None:
    """All of them into the bench's folder."""
    text = json_text(bench.record(), indent=1)
    write_atomic(out / "bench.json", (text + "\n").encode())
    write_atomic(out / "bench.md", markdown(bench, title).encode())
    drawn = plot(bench)
    if drawn:
        write_atomic(out / "bench.svg", drawn.encode())
    write_atomic(out / "bench.csv", "".join(csv_lines(csv_table(bench))).encode())
    links = {one.name: f"runs/{one.name}/report/index.html" for one in bench.outcomes}
    there = {name: link for name, link in links.items() if (out / link).is_file()}
    write_atomic(out / "bench.html", page(bench, title, drawn or "", there).encode())


def page(bench: Bench, title: str, drawn: str, reports: Mapping[str, str] | None = None) -> str:
    """One page without scripts or links to elsewhere, in the look of the report; `reports` are those of its runs."""
    style = resources.files("dnd.results.report").joinpath("page/report.css").read_text("utf-8") + _STYLE
    body = [
        f"<h1>{escape(title)}</h1>",
        _table(columns(bench), rows(bench), reports or {}),
        "".join(f"<p>{_code(note)}</p>" for note in notes(bench)),
        drawn,
        "<h2>Stages</h2>",
        _table(STAGE_COLUMNS, stage_rows(bench), {}),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], links: Mapping[str, str]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(_line(line, len(heads), links) for line in lines)
    return f'<div class="scroller"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _line(line: Sequence[str], width: int, links: Mapping[str, str]) -> str:
    if len(line) < width:  # a failed combination: its reason over all the rest
        number, name, reason = map(escape, line)
        return f'<tr class="failed"><td>{number}</td><td>{name}</td><td colspan="{width - 2}">{reason}</td></tr>'
    return f"<tr>{''.join(f'<td>{_linked(cell, links)}</td>' for cell in line)}</tr>"


def _linked(cell: str, links: Mapping[str, str]) -> str:
    """An interval's ends stay together; a combination leads to its report."""
    text, link = escape(cell).replace(", ", ",&nbsp;"), links.get(cell.removesuffix(" *"))
    return f'<a href="{escape(quote(link))}">{text}</a>' if link else text


def _code(note: str) -> str:
    """What stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(note))
