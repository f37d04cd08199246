"""The command `dnd`. Each callback imports what it needs, so that `dnd --help` costs nothing.

Exit status: 0 done; 1 the user can mend it; 2 usage; 3 finished, but some units failed. A bug is a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from dnd.commands import make_console
from dnd.commands.bench import bench
from dnd.commands.calibrate import calibrate
from dnd.commands.doctor import doctor
from dnd.commands.evaluate import evaluate
from dnd.commands.export import export
from dnd.commands.find import find
from dnd.commands.group import group
from dnd.commands.models import models
from dnd.commands.options import chosen_options, import_from_here, run_options
from dnd.commands.plugins import plugins
from dnd.commands.prune import prune
from dnd.commands.report import report
from dnd.commands.status import status
from dnd.errors import DndError, StoppedError
from dnd.offline import forbid_network, raise_if_tried
from dnd.plain import plain
from dnd.surroundings import set_switches


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: the one place where errors are printed."""
    try:
        try:
            code = cli.main(arguments, prog_name="dnd", standalone_mode=False)
        finally:
            raise_if_tried()  # whatever became of it
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        code = 1
    except DndError as error:
        click.echo(plain(f"Error: {error}"), err=True)
        if error.hint:
            click.echo(plain(f"Hint: {error.hint}"), err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dnd-describe", prog_name="dnd")
@click.option("--sealed", is_flag=True, envvar="DND_SEALED", help="Let the kernel cut off every network (Linux).")
@click.pass_context
def cli(context: click.Context, sealed: bool) -> None:
    """Label the units of a vision network in plain language, with models on this machine."""
    if sealed:
        from dnd.sealing import seal

        seal()
    if context.invoked_subcommand != "models":  # which alone may download
        set_switches()  # before anything imports torch
        forbid_network()


for command in (bench, calibrate, doctor, evaluate, export, find, group, prune, plugins, models, report, status):
    cli.add_command(command)


@cli.command()
@run_options
@click.option("--dry-run", is_flag=True, help="Print the plan, with times where rates are known, and touch nothing.")
@click.option(
    "--rates",
    metavar="FILE",
    envvar="DND_RATES",
    help="For --dry-run: rates that benchmarks/gpu.py measured.",
)
@click.option("--log", metavar="FILE", help="Append what happens to FILE, a line each, with the time.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print nothing but, at the end, a summary as JSON.")
def run(
    runfile: str | None,
    out: str | None,
    fresh: bool,
    dry_run: bool,
    rates: str | None,
    log: str | None,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Label units. RUNFILE is a path or the name of a run file that is installed.

    With no arguments: the microworld, a small network whose units' meaning is known. A killed run goes on
    where it was when the same command is given again.
    """
    from dnd.registry import Registry
    from dnd.runfile import read_run

    if (
        rates
        and not dry_run
        and click.get_current_context().get_parameter_source("rates") is ParameterSource.COMMANDLINE
    ):
        raise click.UsageError("--rates is for --dry-run.")
    settings = given.pop("settings")
    import_from_here()
    registry = Registry.load()
    wanted = read_run(runfile, registry, options=chosen_options(given), settings=settings)
    if dry_run:
        from dnd.plan import show_plan

        show_plan(make_console(), wanted, registry, rates)
        return 0
    from dnd.locking import run_folder
    from dnd.pipeline import execute
    from dnd.runlog import log_to
    from dnd.stopping import stop_on_signals

    folder, console = run_folder(out), make_console(quiet=quiet or as_json)
    try:
        with log_to(log), stop_on_signals() as stopped, redirect_stdout(sys.stderr) if as_json else nullcontext():
            result = execute(wanted, folder, fresh=fresh, console=console, registry=registry, stopped=stopped)
    except StoppedError:
        click.echo("Stopped. What is finished is kept: the same command goes on from there.", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("\nInterrupted. What is finished is kept: the same command goes on from there.", err=True)
        return 1
    if as_json:
        click.echo(result.summary())
    return result.exit_code
