"""The command `dnd`. Each callback imports what it needs, so that `dnd --help` costs nothing.

Exit status: 0 done; 1 the user can mend it; 2 usage; 3 finished, but some units failed. A bug is a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dnd.errors import DndError

if TYPE_CHECKING:
    from rich.console import Console


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


# --- dnd run -----------------------------------------------------------------------------------------


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

        show_plan(_console(), wanted, registry)
        return 0
    from dnd.pipeline import execute

    folder = Path(out) if out else _new_folder()
    try:
        return execute(wanted, folder, fresh=fresh, console=_console(), registry=registry).exit_code
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


def _console() -> Console:
    """Standard output; where that is not a terminal, wide enough that no table is cut."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


# --- dnd plugins -------------------------------------------------------------------------------------


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def plugins(as_json: bool) -> None:
    """List backends, targets and probing sets.

    Those that cannot be used say why.
    """
    from dnd.registry import Registry

    fields = ("kind", "name", "distribution", "version", "state", "reason")
    entries = sorted(Registry.load().entries, key=lambda e: (e.kind, e.name, e.distribution))
    rows = [{field: getattr(entry, field) for field in fields} for entry in entries]
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=1))
        return
    _print_table(fields, [list(row.values()) for row in rows])


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    _console().print(table)


# --- dnd models --------------------------------------------------------------------------------------


@cli.group()
def models() -> None:
    """What models.lock names: list, verify, lock."""


@models.command("list")
def models_list() -> None:
    """List them: role, size, licence, here or not."""
    from dnd.weights import Weights

    weights = Weights.default()
    rows = [
        [m.name, m.role, f"{m.size / 1e6:,.1f}", m.licence, weights.state(m.name), m.source]
        for m in weights.by_name.values()
    ]
    _print_table(("name", "role", "MB", "licence", "state", "source"), rows)


@models.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def models_verify(names: tuple[str, ...]) -> int:
    """Compare files with models.lock.

    Without names: those of all models that are here.
    """
    from dnd.errors import ModelError
    from dnd.weights import Weights

    weights = Weights.default()
    wrong = 0
    for name in names or [name for name in weights.by_name if weights.state(name) == "here"]:
        try:
            click.echo(f"{name}: ok, {weights.resolve(name, again=True)}")
        except ModelError as error:
            wrong += 1
            click.echo(f"Error: {error}", err=True)
            click.echo(f"Hint: {error.hint}", err=True)
    return 1 if wrong else 0


@models.command("lock")
@click.argument("name")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--role", help="What it is for: captioner, summarizer, generator, scorer, target or encoder.")
@click.option("--licence", help="SPDX name.  [default: Apache-2.0]")
def models_lock(name: str, folder: str, role: str | None, licence: str | None) -> None:
    """Pin the files in FOLDER as the model NAME.

    FOLDER is package data, or a copy of a hub's model some of whose digests models.lock does not know.
    """
    from pathlib import Path

    from dnd.pinning import lock_folder
    from dnd.weights import Weights

    weights = Weights.default()
    model = lock_folder(weights, name, Path(folder), role=role, licence=licence)
    click.echo(f"{model.name}: {len(model.files)} files, {model.size / 1e6:.1f} MB, {model.source} in {weights.lock}")
