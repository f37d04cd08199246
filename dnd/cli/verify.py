"""`dnd verify`: a verdict on each label of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from dnd.api import Unit
    from dnd.config.run import Run
    from dnd.results.verdict import Verdict

REFINED = ("too narrow", "too broad", "one of several")
"""Verdicts on labels for which there may be a better one."""


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
@click.option(
    "--refine",
    metavar="OUT",
    type=click.Path(file_okay=False),
    help="Label the run anew there, refining labels that are too narrow, too broad or one of several.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def verify(
    run: str,
    images: int,
    clip: str | None,
    generator: str | None,
    device: str | None,
    refine: str | None,
    as_json: bool,
) -> None:
    """Test each label of a run on new images.

    A label is verified, too narrow, too broad, one of several, or does not drive its unit: by images generated for
    it, for broader and narrower names, and for the unit's other candidates. The verdicts go into the run's labels.csv
    and, with their figures, into labels.jsonl; `dnd report` shows them. With --refine, a run of the method refine
    follows, whose other labels are those of this run; both share a store where their folders lie side by side.
    """
    import json
    from pathlib import Path

    from rich.console import Console

    from dnd.errors import UsageError
    from dnd.evaluation.verify import verify_run
    from dnd.runtime.progress import Meter
    from dnd.text import json_text

    if refine:
        _refined_run(run, "all", device)  # so that it fails now if it cannot be
        if Path(refine).resolve() == Path(run).resolve():
            raise UsageError(f"{refine} is the run itself", "Name another folder after --refine.")
    with Meter(Console(stderr=True)) as meter:
        found = verify_run(Path(run), images=images, meter=meter, clip=clip, generator=generator, device=device)
    if as_json:
        figures = ((unit, json.loads(one.model_dump_json(by_alias=True))) for unit, one in found.items())
        rows = [{"layer": unit.layer, "unit": unit.index, **own} for unit, own in figures]
        click.echo(json_text(rows, indent=1))
    else:
        _show(run, found)
    if refine:
        _refine(run, Path(refine), [unit for unit, one in found.items() if one.word in REFINED], device)


def _show(run: str, found: Mapping[Unit, Verdict]) -> None:
    from collections import Counter

    from dnd.cli.console import print_table

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


def _refined_run(run: str, units: str, device: str | None) -> Run:
    """The run again, with these units refined. UsageError where the method refine cannot label it."""
    from pathlib import Path

    from dnd.config.read import read_run
    from dnd.plugin.registry import Registry

    options = {"method.name": "refine", "method.units": units} | ({"device": device} if device else {})
    return read_run(Path(run) / "run.toml", Registry.load(), options=options)


def _refine(run: str, out: Path, units: Sequence[Unit], device: str | None) -> None:
    from dnd.cli.console import make_progress_console
    from dnd.config.units import unit_text
    from dnd.pipeline.execute import execute

    if not units:
        click.echo(f"No label is {', '.join(REFINED[:-1])} or {REFINED[-1]}: nothing to refine.", err=True)
        return
    wanted = _refined_run(run, unit_text([unit.index for unit in units]), device)
    execute(wanted, out, console=make_progress_console(quiet=False))
    n = "1 label is" if len(units) == 1 else f"{len(units)} labels are"
    click.echo(f"{n} refined in {out}: `dnd verify {out}` tests what came of it.", err=True)
