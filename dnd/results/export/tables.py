"""Labels as text: CSV, JSONL, Markdown, LaTeX, and the table of Describe-and-Dissect's reference code."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dnd.api import N_LABELS, Label
from dnd.errors import UsageError
from dnd.results.export.latex import latex
from dnd.results.run import RunFolder
from dnd.text import csv_lines, escape_json, plain, spreadsheet_lines


def labels_table(run: RunFolder) -> Iterable[str]:
    """labels.csv as it is, once it has been read as such."""
    _ = run.labels
    return _lines(run.folder / "labels.csv")


def spreadsheet_table(run: RunFolder) -> Iterable[str]:
    """labels.csv with an apostrophe before every cell that a spreadsheet would take for a formula."""
    return spreadsheet_lines(csv.reader(labels_table(run), strict=True))


def labels_jsonl(run: RunFolder) -> Iterable[str]:
    """labels.jsonl likewise; an earlier version wrote control characters into it as they are."""
    run.recorded()
    return map(escape_json, _lines(run.folder / "labels.jsonl"))


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="") as opened:
        yield from opened


def reference_csv(run: RunFolder) -> Iterable[str]:
    """Neuron ID,Label 1,Label 2,Label 3: units without a label have empty cells. It has no column for the layer, so
    the run must have one only."""
    if len(run.layers) > 1:
        raise UsageError(
            f"the reference's table knows no layers, and {run.folder} has {', '.join(run.layers)}",
            "Export csv, or label one layer at a time.",
        )
    rows: list[list[object]] = [["Neuron ID", *(f"Label {n}" for n in range(1, N_LABELS + 1))]]
    for label in run.labels:
        concepts = [concept for concept, _ in label.labels]
        rows.append([label.unit.index, *concepts, *[""] * (N_LABELS - len(concepts))])
    return csv_lines(rows)


def markdown_table(run: RunFolder) -> Iterable[str]:
    """A table for GitHub and the like."""
    head, *rows = _rows(run)
    lines = [head, ["---:" if name == "score" else "---" for name in head]]
    lines += [[escape_markdown(cell) for cell in row] for row in rows]
    return ["| " + " | ".join(line) + " |\n" for line in lines]


def latex_table(run: RunFolder) -> Iterable[str]:
    """A `longtable` with rules; the document needs the packages array, booktabs, longtable, and with pdfLaTeX fontenc
    with T1."""
    head, *rows = _rows(run)
    return [latex(head, rows)]


def _rows(run: RunFolder) -> list[list[str]]:
    """The head and a row for each unit, with the verdicts where the run was verified."""
    rows = [["unit", "label", "score", "also"], *(list(_cells(label)) for label in run.labels)]
    if run.verdicts:
        words = (run.verdicts[label.unit].word if label.unit in run.verdicts else "" for label in run.labels)
        rows = [[*row, word] for row, word in zip(rows, ["verdict", *words], strict=True)]
    return rows


def _cells(label: Label) -> Sequence[str]:
    """Unit, label, its score, the other labels; what stands where there is no label is in brackets."""
    if not label.labels:
        return (str(label.unit), f"({label.status})", "", label.reason)
    (concept, score), *others = label.labels
    return (str(label.unit), concept, f"{score:.2f}", ", ".join(other for other, _ in others))


def escape_markdown(text: str) -> str:
    """Text that no Markdown reader takes for markup or a web address, on one line and without control characters."""
    safe = plain(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#!|~@$]|:(?=//)|(?<=www)\.)", r"\\\1", safe, flags=re.IGNORECASE)
