"""`dnd export`: the labels where people work."""

from __future__ import annotations

import sys

import click

from dnd.text import plain

FORMATS = ("csv", "jsonl", "markdown", "latex", "reference", "neuronpedia", "parquet", "hf")
_DATA = {"csv", "jsonl", "reference", "neuronpedia"}


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path())
@click.option("--format", "kind", type=click.Choice(FORMATS), default="csv", show_default=True, help="What to write.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(),
    help="A folder for hf.  [default: standard output, but for parquet and hf]",
)
@click.option("--no-images", is_flag=True, help="For parquet and hf: leave the images out.")
@click.option(
    "--for-spreadsheets",
    is_flag=True,
    help="For csv: an apostrophe before cells that a spreadsheet would compute, which begin with = + - or @.",
)
def export(folder: str, kind: str, out: str | None, no_images: bool, for_spreadsheets: bool) -> None:
    """Write a run's labels for other tools.

    csv and jsonl are the run folder's own tables; reference is Neuron ID,Label 1..3; neuronpedia is a line of JSON for
    each feature; parquet has the images in it, as `datasets` reads them; hf is a folder of such files with a card, to
    be published; markdown and latex are tables for a page.
    """
    from pathlib import Path

    from dnd.errors import UsageError
    from dnd.results.export import as_text
    from dnd.results.export import export as write
    from dnd.results.run import RunFolder

    if for_spreadsheets and kind != "csv":
        raise UsageError(f"--for-spreadsheets is for csv, not for {kind}", "Leave out one of the two.")
    run = RunFolder(folder)
    if out is None:
        if kind in ("parquet", "hf"):
            raise UsageError(f"{kind} is no text for the screen", "Name where it goes with --out.")
        on_terminal = sys.stdout.isatty()
        for part in as_text(run, kind, for_spreadsheets=for_spreadsheets):
            if on_terminal:
                click.echo(plain(part), nl=False)
            elif kind in _DATA:  # the same bytes in every locale
                sys.stdout.flush()
                sys.stdout.buffer.write(part.encode())
            else:
                click.echo(part, nl=False)
        return
    write(run, kind, Path(out), images=not no_images, for_spreadsheets=for_spreadsheets)
    click.echo(f"{len(run)} unit{'s' if len(run) != 1 else ''} in {out}", err=True)
