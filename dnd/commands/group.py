"""`dnd group`: units by what their labels mean."""

from __future__ import annotations

import click


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
    import json
    from pathlib import Path

    from dnd.commands import make_console
    from dnd.errors import UsageError
    from dnd.files import write_atomic
    from dnd.meaning import load_encoder
    from dnd.meaning.grouping import group_units, read_categories
    from dnd.meaning.profile import profile_svg
    from dnd.meaning.tables import groups_csv, groups_record, show_groups
    from dnd.reading import RunFolder

    run = RunFolder(folder)
    kinds = read_categories(Path(categories)) if categories else None
    found = group_units(run, load_encoder(encoder), distance=distance, categories=kinds)
    unnamed: dict[str, str] = {}
    if name_with_summarizer:
        from dnd.meaning.naming import name_groups

        found, unnamed = name_groups(run, found, categories=kinds is None)
    where = Path(out) if out else run.folder / "groups"
    if where.is_symlink() and not out:
        raise UsageError(f"{where} is a link to {where.readlink()}", f"To write there, say so: --out {where}.")
    text = json.dumps(groups_record(found), indent=1, ensure_ascii=False) + "\n"
    write_atomic(where / "groups.csv", groups_csv(found).encode())
    write_atomic(where / "groups.json", text.encode())
    write_atomic(where / "groups.svg", profile_svg(found).encode())
    if as_json:
        click.echo(text, nl=False)
        return
    show_groups(make_console(), found)
    for name, reason in unnamed.items():
        click.echo(f"The summarizer found no name for {name}: {reason}", err=True)
    click.echo(f"Tables and picture are in {where}")
