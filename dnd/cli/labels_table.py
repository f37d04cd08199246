"""What a finished run shows on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnd.api import Grading, Label, Unit
from dnd.results.run import RunFolder
from dnd.results.verdict import Verdict

_STYLE = {"labelled": "", "uninterpretable": "dim", "failed": "red"}
_MOST_ROWS = 200
"""A table longer than this is for labels.csv, not for a screen."""


def show_labels(
    console: Console, labels: Sequence[Label], grading: Grading | None, verdicts: Mapping[Unit, Verdict]
) -> None:
    """The labels, a line per unit; with a known truth, what the wrong ones should have been."""
    wrong = grading.wrong if grading else {}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("unit", "label", "score", "also"):
        table.add_column(column, justify="right" if column == "score" else "left")
    if grading:
        table.add_column("truth")
    if verdicts:
        table.add_column("verdict")
    for label in labels[:_MOST_ROWS]:
        given = label.labels if label.status == "labelled" else ()
        name = given[0][0] if given else f"({label.status})"
        score = f"{given[0][1]:.2f}" if given else ""
        also = ", ".join(concept for concept, _ in given[1:])
        more = []
        if grading:
            missed = wrong.get(str(label.unit))
            more = ["[green]ok[/green]" if missed is None else f"[yellow]{escape(missed)}[/yellow]"]
        if verdicts:
            more.append(verdicts[label.unit].word if label.unit in verdicts else "")
        table.add_row(escape(str(label.unit)), escape(name), score, escape(also), *more, style=_STYLE[label.status])
    console.print(table)
    if len(labels) > _MOST_ROWS:
        console.print(f"... and {len(labels) - _MOST_ROWS} more in labels.csv")
    counts = Counter(label.status for label in labels)
    console.print(", ".join(f"{counts[status]} {status}" for status in _STYLE if counts[status]))
    words = Counter(one.word for one in verdicts.values())
    if words:
        console.print(", ".join(f"{count} {word}" for word, count in words.most_common()))


def show_grading(console: Console, grading: Grading) -> None:
    """How many labels are right by kind, beside what chance gives."""
    table = Table(title="right, by kind of unit", title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("kind", "right", "of", "share"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for grade in grading.grades:
        share = f"{grade.right / grade.total:.0%}" if grade.total else "-"
        table.add_row(escape(grade.kind), str(grade.right), str(grade.total), share)
    for name, chance in grading.controls.items():
        table.add_row(escape(name), "", "", f"{chance:.0%}", style="dim")
    console.print(table)


def show_figures(console: Console, grading: Grading) -> None:
    """Each model's own held-out figures, a line each."""
    if not grading.figures:
        return
    table = Table(title="held-out figures of the models", title_justify="left", box=None, pad_edge=False)
    for column in ("model", "figure", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for model, figures in grading.figures.items():
        for number, (name, value) in enumerate(figures.items()):
            table.add_row("" if number else escape(model), escape(name), f"{value:g}")
    console.print(table)


def show_unreadable(console: Console, unreadable: Sequence[tuple[str, str]]) -> None:
    """Probing images that were skipped, by name."""
    if not unreadable:
        return
    console.print(f"[yellow]{len(unreadable)} probing images could not be read and were skipped:[/yellow]")
    for name, reason in unreadable[:10]:
        console.print(f"  {escape(name)}: {escape(reason)}")
    if len(unreadable) > 10:
        console.print("  ... all of them are in run.json")


def show_reused(console: Console, stages: Mapping[str, Mapping[str, int]]) -> None:
    """What the run did not have to compute; `stages` as in run.json."""
    stored = {name: stage["items"] - stage["computed"] - stage["failed"] for name, stage in stages.items()}
    parts = [f"{name} {count} of {stages[name]['items']}" for name, count in stored.items() if count > 0]
    if parts:
        _say(console, f"Found in the store: {', '.join(parts)}.", "dim")


def _say(console: Console, text: str, style: str) -> None:
    """In a terminal broken between words, elsewhere one line."""
    console.print(text, style=style, highlight=False, soft_wrap=not console.is_terminal)


def show_result(console: Console, result: RunFolder, *, verbose: bool = False) -> None:
    """All that a finished run has to show, how good the labels are last."""
    show_labels(console, result.labels, result.grading, result.verdicts)
    show_unreadable(console, result.unreadable)
    for note in result.notes:
        _say(console, f"Note: {escape(note)}.", "yellow")
    show_reused(console, result.facts.get("stages", {}))
    if result.grading and verbose:
        console.print()
        show_figures(console, result.grading)
    console.print(f"{result.seconds:.0f} s", style="dim", highlight=False)
    if result.grading:
        console.print()
        show_grading(console, result.grading)


def show_next(console: Console, result: RunFolder, page: Path | None) -> None:
    """What to do next, and in the last line the path of the report, or of the run where there is none."""
    folder = escape(str(result.folder))
    if result.grading:
        lines = ["Next, your own network (docs/quickstart.md shows the way):", "  dnd init run.toml"]
    else:
        lines = [
            "Next, mark labels right or wrong in the report, save the marks, and measure:",
            f"  dnd eval {folder} --truth marks.csv",
            "For other tools:",
            f"  dnd export {folder} --format csv --out labels.csv",
        ]
    console.print("\n".join(["", *lines]), highlight=False, soft_wrap=True)
    console.print("The report:" if page else f"No report; `dnd report {folder}` builds it. The run:", highlight=False)
    console.print(escape(str(page)) if page else folder, highlight=False, soft_wrap=True)
