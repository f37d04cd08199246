"""`dnd verify`: a verdict on each label of a run."""

from __future__ import annotations

import click


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--images",
    metavar="N",
    type=click.IntRange(3),
    default=10,
    show_default=True,
    help="Images generated for each name that is tested.",
)
@click.option(
    "--clip", metavar="NAME|FOLDER", help="CLIP for texts and images.  [default: the run's own, if it has one]"
)
@click.option(
    "--generator", metavar="RUNFILE", help="Draw them with the generator of this run file.  [default: the run's own]"
)
@click.option("--device", metavar="D", help="cpu, cuda, cuda:1 or auto.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def verify(run: str, images: int, clip: str | None, generator: str | None, device: str | None, as_json: bool) -> None:
    """Test each label of a run on new images.

    A label is verified, too narrow, too broad, one of several, or does not drive its unit: by images generated for
    it, for broader and narrower names, and for the unit's other candidates. The verdicts go into the run's labels.csv
    and, with their figures, into labels.jsonl; `dnd report` shows them.
    """
    import json
    from collections import Counter
    from pathlib import Path

    from rich.console import Console

    from dnd.cli.console import print_table
    from dnd.evaluation.verify import verify_run
    from dnd.runtime.progress import Meter
    from dnd.text import json_text

    with Meter(Console(stderr=True)) as meter:
        found = verify_run(Path(run), images=images, meter=meter, clip=clip, generator=generator, device=device)
    if as_json:
        figures = ((unit, json.loads(one.model_dump_json(by_alias=True))) for unit, one in found.items())
        rows = [{"layer": unit.layer, "unit": unit.index, **own} for unit, own in figures]
        click.echo(json_text(rows, indent=1))
        return

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    print_table(
        ("unit", "label", "verdict", "because of", "AUC", "needed", "correlation"),
        [
            (str(u), v.concept, v.word, v.because, shown(v.auc), shown(v.needed), shown(v.correlation))
            for u, v in found.items()
        ],
    )
    counts = Counter(one.word for one in found.values())
    click.echo(", ".join(f"{count} {word}" for word, count in counts.most_common()))
    click.echo(f"`dnd report {run}` shows them.", err=True)
