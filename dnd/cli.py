"""The command `dnd`. Each callback imports what it needs, so that `dnd --help` costs nothing.

Exit status: 0 done; 1 the user can mend it; 2 usage; 3 finished, but some units failed. A bug is a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from dnd.commands import make_console
from dnd.commands.models import models
from dnd.commands.plugins import plugins
from dnd.errors import DndError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: the one place where errors are printed."""
    try:
        code = cli.main(arguments, prog_name="dnd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        code = 1
    except DndError as error:
        click.echo(f"Error: {error}", err=True)
        if error.hint:
            click.echo(f"Hint: {error.hint}", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dnd-describe", prog_name="dnd")
def cli() -> None:
    """Label the units of a vision network in plain language, with models on this machine."""


for command in (plugins, models):
    cli.add_command(command)


@cli.command()
@click.argument("runfile", required=False)
@click.option("--target", metavar="NAME", help="Network to study: a plugin's, or your own MODULE:FUNCTION.")
@click.option("--layer", "layers", metavar="LAYER", multiple=True, help="Dotted name; may be repeated.")
@click.option("--units", metavar="0-9,12|all", help="Units of each layer.")
@click.option("--probe", "probes", metavar="NAME|FOLDER", multiple=True, help="Probing images; may be repeated.")
@click.option("--captioner", metavar="NAME")
@click.option("--summarizer", metavar="NAME")
@click.option("--generator", metavar="NAME")
@click.option("--scorer", metavar="NAME")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any setting: captioner.num_beams=5.")
@click.option("--out", metavar="FOLDER", type=click.Path(file_okay=False), help="Run folder.  [default: runs/<time>]")
@click.option("--seed", metavar="N", type=int)
@click.option("--device", metavar="D", help="cpu, cuda, cuda:1 or auto.")
@click.option("--fresh", is_flag=True, help="Ignore what is stored of earlier runs.")
@click.option("--dry-run", is_flag=True, help="Print the plan and touch nothing.")
def run(runfile: str | None, out: str | None, fresh: bool, dry_run: bool, **given: Any) -> int:
    """Label units. RUNFILE is a path or the name of a run file that is installed.

    With no arguments: the microworld, a small network whose units' meaning is known. A killed run goes on
    where it was when the same command is given again.
    """
    from pathlib import Path

    from dnd.registry import Registry
    from dnd.runfile import read_run
    from dnd.surroundings import set_switches

    set_switches()  # before anything imports torch
    settings = given.pop("settings")
    _import_from_here()
    registry = Registry.load()
    wanted = read_run(runfile, registry, options=_options(given), settings=settings)
    if dry_run:
        from dnd.plan import show_plan

        show_plan(make_console(), wanted, registry)
        return 0
    from dnd.pipeline import execute

    folder = Path(out) if out else _new_folder()
    try:
        return execute(wanted, folder, fresh=fresh, console=make_console(), registry=registry).exit_code
    except KeyboardInterrupt:
        click.echo("\nInterrupted. What is finished is kept: the same command goes on from there.", err=True)
        return 1


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """What was given on the command line, under its dotted key in a run file."""
    keys = {"target": "target.name", "layers": "target.layers", "units": "target.units", "probes": "probing.sets"}
    named = {keys.get(name, name): value for name, value in given.items() if value not in (None, ())}
    backends = ("captioner", "summarizer", "generator", "scorer")
    return {
        f"{key}.backend" if key in backends else key: list(value) if isinstance(value, tuple) else value
        for key, value in named.items()
    }


def _import_from_here() -> None:
    """Let `module:function` targets lie in the current folder, as `python -m` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _new_folder() -> Any:
    """runs/<time>, with a number where two runs begin in the same second."""
    import time
    from itertools import count
    from pathlib import Path

    stem = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    names = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in count(1))
    return next(name for name in names if not name.exists())
