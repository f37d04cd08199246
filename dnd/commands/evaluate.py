"""`dnd eval`: how good labels are."""

from __future__ import annotations

import click


@click.command("eval")
@click.argument("source", metavar="RUN|TABLE", required=False, type=click.Path(exists=True))
@click.option(
    "--truth",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="One true text per line, or a CSV unit,text.",
)
@click.option("--encoder", metavar="NAME|FOLDER", help="Sentence encoder: an entry of models.lock, or a folder.")
@click.option(
    "--clip", metavar="NAME|FOLDER", help="CLIP for texts and images.  [default: the run's own, if it has one]"
)
@click.option(
    "--images",
    metavar="N",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Images drawn of each label of a run; 0 leaves out all that needs images.",
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

    RUN is a run's folder, TABLE a label table of dnd or of another tool. Every figure comes with a 95 % interval
    and two controls: labels shuffled between units, and the best label that could be given to all of them. A run's
    figures are also kept in its folder, as evaluation.json.
    """
    import json
    from pathlib import Path
    from typing import Any, cast

    from dnd.commands import make_console
    from dnd.errors import UsageError

    if sanity:
        from dataclasses import asdict

        from dnd.evaluation.sanity import run_checks
        from dnd.evaluation.screen import show_checks

        checks = run_checks()
        if as_json:
            click.echo(json.dumps([{**asdict(check), "passes": check.passes} for check in checks], indent=1))
        else:
            show_checks(make_console(), checks)
        return
    if source is None:
        raise UsageError("name a run's folder or a label table", "dnd eval RUN --truth FILE --encoder NAME")
    from rich.console import Console

    from dnd.evaluation.evaluate import Options, evaluate
    from dnd.evaluation.screen import show_evaluation
    from dnd.files import write_atomic
    from dnd.progress import Meter

    options = Options(truth=Path(truth) if truth else None, **cast(dict[str, Any], given))
    with Meter(Console(stderr=True)) as meter:
        found = evaluate(Path(source), options, meter)
    text = json.dumps(found.record(), indent=1, ensure_ascii=False)
    if found.source.is_dir():
        write_atomic(found.source / "evaluation.json", (text + "\n").encode())
    if as_json:
        click.echo(text)
    else:
        show_evaluation(make_console(), found)
