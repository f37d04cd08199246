"""The bench's files: bench.json, bench.md, bench.html with the plot in it, and the plot by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from dnd.bench.compare import Bench
from dnd.bench.plot import plot
from dnd.bench.table import STAGE_COLUMNS, columns, markdown, notes, rows, stage_rows
from dnd.store.files import write_atomic
from dnd.text import json_text

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #222; --line: #ddd; --bad: #a00; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181d; --ink: #ddd; --line: #3a3d45; --bad: #f99; } }
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 1400px; padding: 0 1em; }
body { background: var(--ground); color: var(--ink); }
table { border-collapse: collapse; font-size: 13px; }
th, td { border-bottom: 1px solid var(--line); padding: 3px 8px; text-align: left; vertical-align: top; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--ground); }
.failed td { color: var(--bad); }
.wide { overflow-x: auto; }
svg { display: block; max-width: 1000px; }
@media print { th:first-child, td:first-child { position: static; } }
"""


def write_bench(out: Path, bench: Bench, title: str) -> None:
    """All of them into the bench's folder."""
    text = json_text(bench.record(), indent=1)
    write_atomic(out / "bench.json", (text + "\n").encode())
    write_atomic(out / "bench.md", markdown(bench, title).encode())
    drawn = plot(bench)
    if drawn:
        write_atomic(out / "bench.svg", drawn.encode())
    write_atomic(out / "bench.html", page(bench, title, drawn or "").encode())


def page(bench: Bench, title: str, drawn: str) -> str:
    """One page without scripts or links to elsewhere."""
    body = [
        f"<h1>{escape(title)}</h1>",
        _table(columns(bench), rows(bench)),
        "".join(f"<p>{_code(note)}</p>" for note in notes(bench)),
        drawn,
        "<h2>Stages</h2>",
        _table(STAGE_COLUMNS, stage_rows(bench)),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{_STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(_line(line, len(heads)) for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _line(line: Sequence[str], width: int) -> str:
    if len(line) < width:  # a failed combination: its reason over all the rest
        return f'<tr class="failed"><td>{escape(line[0])}</td><td colspan="{width - 1}">{escape(line[1])}</td></tr>'
    cells = (escape(cell).replace(", ", ",&nbsp;") for cell in line)  # an interval's ends stay together
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _code(note: str) -> str:
    """What stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(note))
