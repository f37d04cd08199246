"""`dnd eval`: how good labels are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from dnd.text import json_text

if TYPE_CHECKING:
    from rich.console import Console

    from dnd.evaluation.estimates import Summary
    from dnd.evaluation.evaluate import Evaluation
    from dnd.evaluation.intervals import Estimate
    from dnd.evaluation.sanity import Check


@click.command("eval")
@click.argument("source", metavar="RUN|TABLE", required=False, type=click.Path(exists=True))
@click.option(
    "--truth",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="One true text per line, or a CSV unit,text.",
)
@click.option("--layer", metavar="NAME", help="Of the truth, where it has several.")
@click.option("--encoder", metavar="NAME|FOLDER", help="Sentence encoder: an entry of models.lock, or a folder.")
@click.option(
    "--clip", metavar="NAME|FOLDER", help="CLIP for texts and images.  [default: the run's own, if it has one]"
)
@click.option(
    "--images",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    help="Measure on images, too: so many are generated of each label of a run, which takes its time.",
)
@click.option(
    "--generator", metavar="RUNFILE", help="Draw them with the generator of this run file.  [default: the run's own]"
)
@click.option("--device", metavar="D", help="cpu, cuda, cuda:1 or auto.")
@click.option("--seed", metavar="N", type=int, default=0, help="Of the bootstrap.")
@click.option(
    "--sanity", is_flag=True, help="Show instead which metrics notice labels that are too narrow or too broad."
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def evaluate(source: str | None, truth: str | None, sanity: bool, as_json: bool, **given: object) -> None:
    """Measure labels against a truth, and on images.

    RUN is a run's folder, TABLE a label table of dnd or of another tool. FILE may be the marks that a report saved.
    Every figure comes with a 95 % interval and two controls: labels shuffled between units, and the best label that
    could be given to all of them. A run's figures are also kept in its folder, as evaluation.json.
    """
    from pathlib import Path
    from typing import Any, cast

    from dnd.cli.console import make_console
    from dnd.errors import UsageError

    if sanity:
        from dataclasses import asdict

        from dnd.evaluation.sanity import run_checks, run_image_checks

        checks = run_checks()
        if as_json:
            on_images = [
                {"figure": f"images.{name}", "narrow": narrow, "broad": broad}
                for name, (narrow, broad) in run_image_checks().items()
            ]
            known = [{**asdict(check), "passes": check.passes} for check in checks]
            click.echo(json_text({"metrics": known, "images": on_images}, indent=1))
        else:
            show_checks(make_console(), checks)
        return
    if source is None:
        raise UsageError("name a run's folder or a label table", "dnd eval RUN --truth FILE --encoder NAME")
    from rich.console import Console

    from dnd.evaluation.evaluate import Options, evaluate
    from dnd.runtime.progress import Meter
    from dnd.store.files import write_atomic

    options = Options(truth=Path(truth) if truth else None, **cast(dict[str, Any], given))
    with Meter(Console(stderr=True)) as meter:
        found = evaluate(Path(source), options, meter)
    text = json_text(found.record(), indent=1)
    if as_json:
        click.echo(text)
    else:
        show_evaluation(make_console(), found)
    if found.source.is_dir():  # last: where it cannot be written, the figures are seen all the same
        write_atomic(found.source / "evaluation.json", (text + "\n").encode())


def show_evaluation(console: Console, found: Evaluation) -> None:
    """How much was evaluated, then a line per figure with its controls."""
    from rich.markup import escape
    from rich.table import Table

    counts = found.counts()
    for what, how in found.facts["read"].items():
        console.print(f"{what.capitalize()} read as {escape(how)}.")
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
    is_wide = console.width >= _WIDE
    columns = _COLUMNS if is_wide else _NARROW
    table = Table(box=None, header_style="bold", pad_edge=False)
    for head in columns:
        table.add_column(head, overflow="fold", justify="right" if head == "n" else "left")
    for summary in found.summaries:
        table.add_row(*(cell(summary) for cell in columns.values()))
    console.print(table)
    if not is_wide:
        console.print(f"--json, or a terminal of {_WIDE} columns, has the controls' intervals, too.", style="dim")
    for note in found.notes:
        console.print(f"Note: {escape(note)}")


def _name(summary: Summary) -> str:
    return summary.figure.name + ("" if summary.figure.higher_is_better else " (lower is better)")


def _text(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.3g} \\[{estimate.low:.3g}, {estimate.high:.3g}]" if estimate.n else "-"


def _constant_label(summary: Summary) -> str:
    from rich.markup import escape

    return escape(summary.figure.constant_label)


def _value(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}" if estimate.n else "-"


_WIDE = 140
"""Columns of a terminal in which all figures have room."""
_COLUMNS: dict[str, Callable[[Summary], str]] = {
    "figure": _name,
    "n": lambda one: str(one.own.n),
    "value [95 %]": lambda one: _text(one.own),
    "chance": lambda one: "" if one.figure.chance is None else f"{one.figure.chance:.3g}",
    "shuffled [95 %]": lambda one: _text(one.shuffled),
    "value - shuffled [95 %]": lambda one: _text(one.above_shuffled),
    "best constant [95 %]": lambda one: _text(one.constant),
    "its label": _constant_label,
    "abstained = wrong": lambda one: _text(one.with_abstentions),
}
_NARROW: dict[str, Callable[[Summary], str]] = {
    **{head: _COLUMNS[head] for head in ("figure", "n", "value [95 %]")},
    "shuffled": lambda one: _value(one.shuffled),
    "best constant": lambda one: _value(one.constant),
}


def show_checks(console: Console, checks: Sequence[Check]) -> None:
    """The sanity tests, measured and by pen and paper."""
    from rich.table import Table

    from dnd.evaluation.sanity import IMAGES, NOTICED, SHARE, run_image_checks

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
    console.print(
        "\nThe figures on images, weighed as `dnd eval` weighs them: images of the label against random ones."
        "\nNone notices a label that is too narrow, as nothing shows what else the unit responds to;"
        "\nimages.simulation_correlation does."
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("figure", "too narrow", "too broad"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name, (narrow, broad) in run_image_checks().items():
        table.add_row(f"images.{name}", f"{narrow:+.4f}", f"{broad:+.4f}")
    console.print(table)
