"""What a finished run shows on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnd.api import Grading, Label
from dnd.pipeline.result import Result
from dnd.runtime.stats import StageStats

_STYLE = {"labelled": "", "uninterpretable": "dim", "failed": "red"}
_MOST_ROWS = 200
"""A table longer than this is for labels.csv, not for a screen."""


def show_labels(console: Console, labels: Sequence[Label], grading: Grading | None) -> None:
    """The labels, a line per unit; with a known truth, what the wrong ones should have been."""
    wrong = grading.wrong if grading else {}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("unit", "label", "score", "also"):
        table.add_column(column, justify="right" if column == "score" else "left")
    if grading:
        table.add_column("truth")
    for label in labels[:_MOST_ROWS]:
        given = label.labels if label.status == "labelled" else ()
        name = given[0][0] if given else f"({label.status})"
        score = f"{given[0][1]:.2f}" if given else ""
        also = ", ".join(concept for concept, _ in given[1:])
        truth = []
        if grading:
            missed = wrong.get(str(label.unit))
            truth = ["[green]ok[/green]" if missed is None else f"[yellow]{escape(missed)}[/yellow]"]
        table.add_row(escape(str(label.unit)), escape(name), score, escape(also), *truth, style=_STYLE[label.status])
    console.print(table)
    if len(labels) > _MOST_ROWS:
        console.print(f"... and {len(labels) - _MOST_ROWS} more in labels.csv")
    counts = Counter(label.status for label in labels)
    console.print(", ".join(f"{counts[status]} {status}" for status in _STYLE if counts[status]))


def show_grading(console: Console, grading: Grading) -> None:
    """How many labels are right by kind, beside chance; then each model's own held-out figures."""
    table = Table(title="right, by kind of unit", title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("kind", "right", "of", "share"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for grade in grading.grades:
        share = f"{grade.right / grade.total:.0%}" if grade.total else "-"
        table.add_row(escape(grade.kind), str(grade.right), str(grade.total), share)
    for name, chance in grading.controls.items():
        table.add_row(escape(name), "", "", f"{chance:.0%}", style="dim")
    console.print(table)
    if grading.figures:
        console.print("each model's own held-out figures:", style="bold")
    for model, figures in grading.figures.items():
        line = "  ".join(f"{escape(name)} {value:g}" for name, value in figures.items())
        console.print(f"  {escape(model)}: {line}", soft_wrap=True)


def show_unreadable(console: Console, unreadable: Sequence[tuple[str, str]]) -> None:
    """Probing images that were skipped, by name."""
    if not unreadable:
        return
    console.print(f"[yellow]{len(unreadable)} probing images could not be read and were skipped:[/yellow]")
    for name, reason in unreadable[:10]:
        console.print(f"  {escape(name)}: {escape(reason)}")
    if len(unreadable) > 10:
        console.print("  ... all of them are in run.json")


def show_reused(console: Console, all_stats: Sequence[StageStats]) -> None:
    """What the run did not have to compute."""
    stored = {stats.name: stats.items - stats.computed - len(stats.failures) for stats in all_stats}
    told = [f"{stats.name} {stored[stats.name]} of {stats.items}" for stats in all_stats if stored[stats.name] > 0]
    if told:
        console.print(f"Found in the store: {', '.join(told)}.", style="dim", highlight=False, soft_wrap=True)


def show_end(console: Console, out: Path, seconds: float) -> None:
    console.print(f"{seconds:.0f} s. Everything is in {escape(str(out))}", highlight=False, soft_wrap=True)


def show_result(console: Console, result: Result) -> None:
    """All that a finished run has to show, the path of its folder last."""
    show_unreadable(console, result.unreadable)
    show_labels(console, result.labels, result.grading)
    if result.grading:
        show_grading(console, result.grading)
    show_reused(console, result.stages)
    show_end(console, result.folder, result.seconds)
