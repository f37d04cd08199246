"""`dnd run`: the main job."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from dnd.cli.console import make_console, make_progress_console
from dnd.cli.options import chosen_options, run_options
from dnd.errors import DndError, ModelError, NotYetError, StoppedError, UsageError
from dnd.text import json_text, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from dnd.pipeline.exemplars.shard import Shard
    from dnd.results.run import RunFolder


_SMALL = (
    "Without a GPU: `dnd run photos` with the same options takes small models that pip installs (docs/quickstart.md)."
)
"""Where options alone have chosen the full-size ones."""


@click.command()
@run_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the plan, with times where earlier runs measured them, and touch nothing.",
)
@click.option("--shard", metavar="I/N", help="Do the I-th of N shares of the run; they share a store.")
@click.option("--log", metavar="FILE", help="Append what happens to FILE, a line each, with the time.")
@click.option("--no-report", is_flag=True, help="Build no report.  [default: report, in the run folder]")
@click.option("--verbose", is_flag=True, help="Show the held-out figures of the models, too.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print nothing but, at the end, a summary as JSON.")
def run(
    runfile: str | None,
    out: str | None,
    fresh: bool,
    dry_run: bool,
    shard: str | None,
    log: str | None,
    no_report: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Label units. RUNFILE is a path or the name of a run file that is installed.

    With no arguments it is the run file `default`. A killed run goes on where it was when the same command is
    given again.
    """
    from dnd.config.read import read_run
    from dnd.plugin.registry import Registry

    settings = given.pop("settings")
    registry = Registry.load()
    wanted = read_run(runfile, registry, options=chosen_options(given), settings=settings)
    share = _share(shard, out, fresh) if shard else None
    if dry_run:
        from dnd.cli.plan import show_plan

        show_plan(make_console(), wanted, registry)
        return 0
    from dnd.cli.labels_table import show_next, show_result
    from dnd.pipeline.execute import execute
    from dnd.runtime.log import log_to
    from dnd.runtime.signals import stop_on_signals
    from dnd.store.locks import run_folder

    silent = quiet or as_json
    folder, console, progress = run_folder(out), make_console(quiet=silent), make_progress_console(quiet=silent)
    folder = share.folder(folder) if share else folder
    try:
        with log_to(log), stop_on_signals() as stopped, redirect_stdout(sys.stderr) if as_json else nullcontext():
            result = execute(
                wanted, folder, fresh=fresh, console=progress, registry=registry, stopped=stopped, shard=share
            )
            if wanted.verify.n and not share:  # of which each knows the labels of its own units only
                result = _verified(result, wanted.verify.n, progress, stopped)
            page = None if no_report else _report(result, progress, stopped)
    except NotYetError as error:
        click.echo(plain(f"{error}. {error.hint}"), err=True)
        if as_json:
            click.echo(json_text({"run": str(folder), "exit_code": 0, "waiting": str(error)}))
        return 0
    except ModelError as error:
        if runfile or not given["target"]:
            raise
        raise ModelError(str(error), f"{error.hint} {_SMALL}".strip()) from error
    except StoppedError:
        click.echo("Stopped. What is finished is kept: the same command goes on from there.", err=True)
        return 1
    except KeyboardInterrupt:
        click.echo("\nInterrupted. What is finished is kept: the same command goes on from there.", err=True)
        return 1
    show_result(console, result, verbose=verbose)
    show_next(console, result, page)
    if as_json:
        click.echo(result.summary(page))
    return result.exit_code


def _share(text: str, out: str | None, fresh: bool) -> Shard:
    from dnd.pipeline.exemplars.shard import Shard

    if fresh or not out:
        raise UsageError(
            "--shard needs --out, the same for all, and goes without --fresh", "Choose a folder with --out."
        )
    return Shard.read(text)


def _verified(result: RunFolder, images: int, progress: Console, stopped: Callable[[], bool]) -> RunFolder:
    """The run with verdicts on its labels; as it is where there are none."""
    from dnd.evaluation.verify import verify_run
    from dnd.results.run import RunFolder
    from dnd.runtime.progress import Meter

    if any(label.status == "labelled" for label in result.labels):
        with Meter(progress, stopped=stopped) as meter:
            verify_run(result.folder, images=images, meter=meter)
    return RunFolder(result.folder)


def _report(result: RunFolder, progress: Console, stopped: Callable[[], bool]) -> Path | None:
    """Its page; None, with a line on standard error, where it cannot be built: the labels are there all the same."""
    from dnd.results.report.build import build_report
    from dnd.runtime.progress import Meter

    try:
        with Meter(progress, stopped=stopped) as meter, meter.stage("report", len(result.labels)) as advance:
            return build_report([result], progress=advance).page
    except StoppedError:
        raise
    except DndError as error:
        click.echo(plain(f"The report is not built: {error}. {error.hint}"), err=True)
        return None
