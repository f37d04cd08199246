"""What `run` and `doctor` share, so that the same words speak of the same run: the run file and its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from dnd.cli import complete

F = TypeVar("F", bound=Callable[..., Any])


def _plugin(kind: str, what: str) -> Callable[[F], F]:
    return click.option(f"--{kind}", metavar="NAME", shell_complete=complete.plugin(kind), help=what)


_CHOICES = (
    click.argument("runfile", required=False, shell_complete=complete.run_file),
    click.option(
        "--target",
        metavar="NAME",
        shell_complete=complete.plugin("target"),
        help="Network to study: a plugin's, or your own MODULE:FUNCTION.",
    ),
    click.option(
        *("--layer", "layers"),
        metavar="LAYER",
        multiple=True,
        shell_complete=complete.layer,
        help="Dotted name; may be repeated.",
    ),
    click.option("--units", metavar="0-9,12|all|shown", help="Units of each layer; `shown`: of what the images show."),
    click.option(
        *("--probe", "probes"),
        metavar="NAME|FOLDER",
        multiple=True,
        shell_complete=complete.plugin("probing-set", or_folder=True),
        help="Probing images; may be repeated.",
    ),
    _plugin("captioner", "What describes images; `dnd plugins` lists all backends."),
    _plugin("summarizer", "What finds concepts in captions."),
    _plugin("generator", "What generates images of concepts."),
    _plugin("scorer", "What compares concepts."),
    _plugin("method", "How labels are found.  [default: dnd]"),
    click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any setting: captioner.num_beams=5."),
    click.option(
        "--out", metavar="FOLDER", type=click.Path(file_okay=False), help="Run folder.  [default: runs/<time>]"
    ),
    click.option("--seed", metavar="N", type=int, help="Every random choice derives from it."),
    click.option("--device", metavar="D", help="cpu, cuda (every GPU), cuda:1, cuda:0,cuda:1 or auto."),
    click.option("--executor", metavar="local|ray", help="Where backends run.  [default: local]"),
    click.option("--address", metavar="HOST:PORT", help="Of the Ray cluster.  [default: the one on this machine]"),
    click.option("--fresh", is_flag=True, help="Ignore what is stored of earlier runs."),
)
_KEYS = {
    "target": "target.name",
    "layers": "target.layers",
    "units": "target.units",
    "probes": "probing.sets",
    "method": "method.name",
    "captioner": "captioner.backend",
    "summarizer": "summarizer.backend",
    "generator": "generator.backend",
    "scorer": "scorer.backend",
}


def run_options(command: F) -> F:
    """RUNFILE and the options of `dnd run`; the choosing ones arrive as `**given`, see `chosen_options`."""
    for decorate in reversed(_CHOICES):
        command = decorate(command)
    return command


def chosen_options(given: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line, under its dotted key in a run file."""
    return {
        _KEYS.get(name, name): list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value not in (None, ())
    }
