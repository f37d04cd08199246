"""`dnd group`: units by what their labels mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dnd.text import json_text, plain

if TYPE_CHECKING:
    from rich.console import Console

    from dnd.analysis.group import Groups


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path())
@click.option("--encoder", metavar="NAME|FOLDER", help="Sentence encoder.  [default: one of models.lock that is here]")
@click.option(
    "--categories",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Super-categories, a line each: water: lake, river, sea.  [default: found, as groups are]",
)
@click.option(
    "--distance",
    metavar="X",
    type=click.FloatRange(0, 2),
    default=0.45,
    show_default=True,
    help="1 - cosine up to which groups are joined.",
)
@click.option("--name-with-summarizer", is_flag=True, help="Let the run's summarizer name groups and super-categories.")
@click.option("--out", metavar="FOLDER", type=click.Path(file_okay=False), help="[default: RUN/groups]")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def group(
    folder: str,
    encoder: str | None,
    categories: str | None,
    distance: float,
    name_with_summarizer: bool,
    out: str | None,
    as_json: bool,
) -> None:
    """Group a run's units by meaning.

    Units whose labels mean much the same form a group, named by its most central label. groups.csv, groups.json and
    the picture groups.svg, with the share of each super-category per layer, go to --out.
    """
    from pathlib import Path

    from dnd.analysis.group import group_units, read_categories
    from dnd.analysis.profile import profile_svg
    from dnd.analysis.tables import groups_csv, groups_record
    from dnd.cli.console import make_console
    from dnd.errors import UsageError
    from dnd.models.encoder import load_encoder
    from dnd.results.run import RunFolder
    from dnd.store.files import write_atomic

    run = RunFolder(folder)
    kinds = read_categories(Path(categories)) if categories else None
    found = group_units(run, load_encoder(encoder), distance=distance, categories=kinds)
    unnamed: dict[str, str] = {}
    if name_with_summarizer:
        from dnd.analysis.name import name_groups

        found, unnamed = name_groups(run, found, categories=kinds is None)
    where = Path(out) if out else run.folder / "groups"
    if where.is_symlink() and not out:
        raise UsageError(f"{where} is a link to {where.readlink()}", f"To write there, say so: --out {where}.")
    text = json_text(groups_record(found), indent=1) + "\n"
    write_atomic(where / "groups.csv", groups_csv(found).encode())
    write_atomic(where / "groups.json", text.encode())
    write_atomic(where / "groups.svg", profile_svg(found).encode())
    if as_json:
        click.echo(text, nl=False)
        return
    show_groups(make_console(), found)
    for name, reason in unnamed.items():
        click.echo(plain(f"The summarizer found no name for {name}: {reason}"), err=True)
    click.echo(f"Tables and picture are in {where}")


_MOST_GROUPS = 60


def show_groups(console: Console, found: Groups) -> None:
    """Groups with their units' labels, then the share of each super-category per layer."""
    from rich.markup import escape
    from rich.table import Table

    if not found.labels:
        console.print("The run has no labelled unit.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("group", "units", "coherence", "category", "other labels"):
        table.add_column(column, justify="right" if column in ("units", "coherence") else "left")
    for group in found.groups[:_MOST_GROUPS]:
        others = [label for label in dict.fromkeys(group.labels) if label != group.name]
        words = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        table.add_row(
            escape(group.name), str(len(group.units)), f"{group.coherence:.2f}", escape(group.category), escape(words)
        )
    console.print(table)
    if len(found.groups) > _MOST_GROUPS:
        console.print(f"... and {len(found.groups) - _MOST_GROUPS} more in groups.csv")
    console.print(
        f"Groups: {len(found.groups)}. Units like no other: {len(found.ungrouped)}, without a label: "
        f"{len(found.unlabelled)}."
    )
    console.print("share of a layer's labelled units", style="italic")
    profile = Table(box=None, header_style="bold", pad_edge=False)
    shares = found.profile()
    profile.add_column("category")
    for layer in shares:
        profile.add_column(escape(layer), justify="right")
    for name in dict.fromkeys(name for one in shares.values() for name in one):
        profile.add_row(escape(name), *(f"{one.get(name, 0):.0%}" for one in shares.values()))
    console.print(profile)
