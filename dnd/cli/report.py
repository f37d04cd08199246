"""`dnd report`: a run as a page."""

from __future__ import annotations

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option(
    "--out",
    metavar="FOLDER|FILE",
    type=click.Path(),
    help="[default: report, in the first run's folder; with --single-file, report.html]",
)
@click.option("--single-file", is_flag=True, help="One HTML file to mail, with small images only.")
def report(runs: tuple[str, ...], out: str | None, single_file: bool) -> None:
    """Build a page that shows a run, or several side by side.

    With all evidence. The page is a folder of files that opens from disk, without a server or a network. Its images
    come from the store beside the run's folder (or $DND_STORE).
    """
    from pathlib import Path

    from rich.console import Console

    from dnd.results.report.build import build_report
    from dnd.results.report.single import build_single
    from dnd.results.run import RunFolder
    from dnd.runtime.progress import Meter

    opened = [RunFolder(run) for run in runs]
    units = len({unit for run in opened for unit in run.recorded()})
    with Meter(Console(stderr=True)) as meter, meter.stage("report", units) as advance:
        build = build_single if single_file else build_report
        built = build(opened, Path(out) if out else None, progress=advance)
    if built.missing.count:
        click.echo(
            f"Images that are not in the report: {built.missing.count}, the first because: {built.missing.first}\n"
            "They are taken from the run's store: DND_STORE=FOLDER says where it is now.",
            err=True,
        )
    for layer in dict.fromkeys(layer for run in opened for layer in run.readings):
        if len({run.readings[layer] for run in opened if layer in run.readings}) > 1:
            click.echo(f"Layer {layer} is read in several ways: a unit of one run is not that of another.", err=True)
    click.echo(f"{built.units} unit{'s' if built.units != 1 else ''}: {built.page}")
