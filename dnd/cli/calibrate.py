"""`dnd calibrate`: from scores to the probability that a label is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dnd.evaluation.reliability import Reliability


@click.command()
@click.argument("folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option(
    "--truth",
    "truths",
    metavar="FILE",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False),
    help="As for `dnd eval`; one for all runs, or one for each, in their order.",
)
@click.option("--out", metavar="FILE", type=click.Path(dir_okay=False), help="Write the calibration here.")
@click.option(
    "--kind",
    type=click.Choice(["platt", "isotonic"]),
    default="platt",
    show_default=True,
    help="The curve: a sigmoid, or any that rises, which wants more units.",
)
@click.option(
    "--check",
    metavar="FILE",
    help="Fit nothing: measure this calibration, a path or package:NAME/FILE, on the runs.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def calibrate(
    folders: tuple[str, ...], truths: tuple[str, ...], out: str | None, kind: str, check: str | None, as_json: bool
) -> None:
    """Turn scores into confidences on runs whose truth is known.

    The figures of a new calibration are cross-validated: each tenth of the units is judged by a curve fitted on the
    others. Use it in a run with `--set labels.calibration=FILE`; labels below `labels.min_confidence` are not given.
    """
    import json
    from dataclasses import asdict
    from pathlib import Path
    from typing import cast

    from dnd.errors import UsageError

    if len(truths) not in (1, len(folders)):
        raise UsageError(f"{len(folders)} runs and {len(truths)} truths", "Give --truth once, or once for each run.")
    if (out is None) == (check is None):
        raise UsageError("nothing to do with it", "Give either --out FILE to fit, or --check FILE to measure.")
    pairs = [(Path(f), Path(t)) for f, t in zip(folders, truths * (len(folders) // len(truths)), strict=True)]
    from dnd.evaluation.calibrate import Kind, fit, judge, together
    from dnd.evaluation.crossvalidate import checked, crossed
    from dnd.store.files import write_atomic

    if check is not None:
        found, what = checked(check, pairs), f"of {check}"
    else:
        calibration = fit(pairs, cast(Kind, kind))
        found, what = crossed(together([judge(*pair) for pair in pairs]), cast(Kind, kind)), "cross-validated"
    if out is not None:
        write_atomic(Path(out), (calibration.model_dump_json(indent=1) + "\n").encode())
    if as_json:
        click.echo(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1))
        return
    for name, one in found.items():
        _show(f"{name}, {what}", one)
    if out is not None:
        click.echo(f"The calibration is in {out}: dnd run ... --set labels.calibration={out}")


def _show(title: str, found: Reliability) -> None:
    from dnd.cli.console import print_table

    click.echo(f"{title}: {found.n} labels, {found.right:.0%} right")
    for name, one in (("ECE", found.ece), ("Brier", found.brier)):
        click.echo(f"  {name:6}{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]")
    chance = found.ece_by_chance
    click.echo(f"  ECE if every confidence were true: {chance.value:.3f} [{chance.low:.3f}, {chance.high:.3f}]")
    click.echo(f"  Brier of one constant confidence: {found.constant_brier:.3f}")
    rows = [
        [f"{b.low:.1f}-{b.high:.1f}", str(b.n), f"{b.confidence:.2f}", _span(b.right.value, b.right.low, b.right.high)]
        for b in found.bins
    ]
    print_table(["confidence", "labels", "mean", "right [95 %]"], rows)


def _span(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"
