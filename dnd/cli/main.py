"""The command `dnd`. Each callback imports what it needs, so that `dnd --help` costs nothing.

Exit status: 0 done; 1 the user can mend it; 2 usage; 3 finished, but some units failed. A bug is a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from dnd.cli.bench import bench
from dnd.cli.calibrate import calibrate
from dnd.cli.config import config, init, runfiles
from dnd.cli.doctor import doctor
from dnd.cli.eval import evaluate
from dnd.cli.export import export
from dnd.cli.find import find
from dnd.cli.group import group
from dnd.cli.models import models
from dnd.cli.plugins import plugins
from dnd.cli.prune import prune
from dnd.cli.report import report
from dnd.cli.run import run
from dnd.cli.screen import keep_stdout, open_screens, output_is_lost
from dnd.cli.status import status
from dnd.cli.verify import verify
from dnd.errors import DndError, UsageError
from dnd.files import is_surroundings
from dnd.offline.block import forbid_network, raise_if_tried
from dnd.offline.environment import collect_rarely, set_switches
from dnd.text import is_unicode, plain

_LEAVE_FILES = {"run", "bench", "calibrate", "eval", "group", "prune", "report", "verify"}
_ELSEWHERE = (
    "Give yourself the right to it, or name another place: --out for a run, $DND_STORE for the store of its stages,"
    " $DND_MODELS and $DND_CACHE for models, $HOME for whatever has no other place."
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: the one place where errors are printed."""
    words = sys.argv[1:] if arguments is None else arguments
    if "--json" in words:
        keep_stdout()
    open_screens()
    code: object = 0
    try:
        _check_texts(words)
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
        code = _say(str(error), error.hint)
    except OSError as error:
        if not is_surroundings(error):
            raise  # a bug
        code = _say(f"cannot use {error.filename}: {error.strerror}", _ELSEWHERE)
    code = code if isinstance(code, int) else 0
    if output_is_lost() and code == 0 and _is_for_output(words):
        code = 1
    sys.exit(code)


def _check_texts(words: Sequence[str]) -> None:
    """UsageError for one that is no UTF-8; the path of what is there may be anything."""
    for word in words:
        if not is_unicode(word) and not os.path.lexists(word):
            raise UsageError(f"{word!r} is no UTF-8", "Write it in UTF-8, or rename the file or folder.")


def _say(message: str, hint: str) -> int:
    click.echo(plain(f"Error: {message}"), err=True)
    if hint:
        click.echo(plain(f"Hint: {hint}"), err=True)
    return 1


def _is_for_output(arguments: Sequence[str]) -> bool:
    """Whether what it prints is all that a command is for: others leave files, which are whole."""
    words = [word for word in arguments if not word.startswith("-")]
    return not words or words[0] not in _LEAVE_FILES


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dnd-describe", prog_name="dnd")
@click.option("--sealed", is_flag=True, envvar="DND_SEALED", help="Let the kernel cut off every network (Linux).")
@click.pass_context
def cli(context: click.Context, sealed: bool) -> None:
    """Label the units of a vision network in plain language, with models on this machine."""
    if sealed:
        from dnd.offline.namespace import seal

        seal()
    collect_rarely()
    if context.invoked_subcommand != "models":  # which alone may download
        set_switches()  # before anything imports torch
        forbid_network()


for command in (run, report, export, status, verify, evaluate, calibrate, find, group, prune, bench):
    cli.add_command(command)
for command in (plugins, models, runfiles, config, init, doctor):
    cli.add_command(command)
