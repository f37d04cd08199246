"""`dnd find`: units by free text."""

from __future__ import annotations

import click

from dnd.text import json_text


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path())
@click.argument("text")
@click.option("--encoder", metavar="NAME|FOLDER", help="Sentence encoder.  [default: one of models.lock that is here]")
@click.option("--layer", metavar="LAYER", multiple=True, help="Only units of this layer; repeatable.")
@click.option(
    "--labels",
    "among",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="How many of a unit's labels count: its second and third too, for units of several meanings.",
)
@click.option(
    "-n", "count", metavar="N", type=click.IntRange(1), default=10, show_default=True, help="Number of units at most."
)
@click.option("--least", metavar="X", type=click.FloatRange(-1, 1), help="Only units at least this near, -1 to 1.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def find(
    folder: str,
    text: str,
    encoder: str | None,
    layer: tuple[str, ...],
    among: int,
    count: int,
    least: float | None,
    as_json: bool,
) -> None:
    """Find a run's units by what their labels mean.

    A unit is as near to TEXT as its label: the cosine of their sentence embeddings, 1 for the same
    words.
    """

    from dnd.analysis.find import find_units
    from dnd.cli.console import print_table
    from dnd.models.encoder import load_encoder
    from dnd.results.run import RunFolder

    run = RunFolder(folder)
    hits = find_units(run, text, load_encoder(encoder), layers=layer, among=among)
    chosen = [hit for hit in hits if least is None or hit.nearness >= least][:count]
    if as_json:
        rows = [
            {
                "layer": hit.unit.layer,
                "unit": hit.unit.index,
                "label": hit.label,
                "nearness": round(hit.nearness, 4),
                "place": hit.place,
                "score": hit.score,
            }
            for hit in chosen
        ]
        click.echo(json_text(rows, indent=1))
        return
    if not chosen:
        click.echo(
            f"No unit is that near; the nearest is {hits[0].label!r}, {hits[0].nearness:.2f}."
            if hits
            else "The run has no labelled unit."
        )
        return
    print_table(
        ("unit", "near", "label", "which", "score"),
        [(str(h.unit), f"{h.nearness:.2f}", h.label, f"{h.place} of {h.of}", f"{h.score:.2f}") for h in chosen],
    )
