"""An evaluation on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnd.evaluation.evaluate import Evaluation
from dnd.evaluation.figures import Estimate, Summary
from dnd.evaluation.sanity import IMAGES, NOTICED, SHARE, Check


def show_evaluation(console: Console, found: Evaluation) -> None:
    """How much was evaluated, then a line per figure with its controls."""
    counts = found.counts()
    console.print(
        f"{counts['units']} units: {counts['labelled']} labelled, {counts['uninterpretable']} uninterpretable,"
        f" {counts['failed']} failed."
    )
    if counts["with_truth"]:
        share = counts["with_truth_labelled"] / counts["with_truth"]
        console.print(
            f"Coverage: {counts['with_truth_labelled']} of {counts['with_truth']} units with a true meaning are"
            f" labelled ({share:.0%})."
        )
    if counts["known_to_mean_nothing"]:
        console.print(
            f"{counts['of_those_labelled']} of {counts['known_to_mean_nothing']} units that mean nothing are labelled."
        )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (
        "figure",
        "n",
        "value [95 %]",
        "shuffled [95 %]",
        "best constant [95 %]",
        "its label",
        "abstained = wrong",
    ):
        table.add_column(column, overflow="fold", justify="right" if column == "n" else "left")
    for summary in found.summaries:
        table.add_row(*_cells(summary))
    console.print(table)
    for note in found.notes:
        console.print(f"Note: {escape(note)}")


def _cells(summary: Summary) -> list[str]:
    figure = summary.figure
    below = "" if figure.higher_is_better else "  (lower is better)"
    whole = summary.with_abstentions
    return [
        figure.name + below,
        str(summary.own.n),
        _text(summary.own),
        _text(summary.shuffled),
        _text(summary.constant),
        escape(figure.constant_label),
        _text(whole) if whole is not None else "",
    ]


def _text(estimate: Estimate) -> str:
    if not estimate.n:
        return "-"
    return f"{estimate.value:.3g} \\[{estimate.low:.3g}, {estimate.high:.3g}]"


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """The sanity tests, measured and by pen and paper."""
    console.print(
        f"A unit that is on exactly where its concept is: {SHARE:.0%} of {IMAGES:,} images. What half of the labels"
        f" missing,\nand as many too many, change each metric by (brought to 0..1); it passes where both cost it"
        f" {NOTICED} or more."
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("metric", "missing", "closed form", "extra", "closed form", ""):
        table.add_column(column, justify="left" if column in ("metric", "") else "right")
    for check in checks:
        numbers = (check.missing, check.missing_expected, check.extra, check.extra_expected)
        table.add_row(check.metric, *(f"{n:+.4f}" for n in numbers), "passes" if check.passes else "fails")
    console.print(table)
