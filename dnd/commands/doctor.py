"""`dnd doctor`: can a run work here?"""

from __future__ import annotations

import json
from typing import Any

import click

from dnd.commands import make_console
from dnd.commands.options import chosen_options, import_from_here, run_options


@click.command()
@run_options
@click.option("--quick", is_flag=True, help="Believe model files that have the right size: hash none.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def doctor(runfile: str | None, out: str | None, fresh: bool, quick: bool, as_json: bool, **given: Any) -> int:
    """Look for what would make a run fail, before any GPU time.

    Takes the words of `dnd run` and speaks of the run that they mean: its devices, models, plugins, images,
    target, layers, memory and disk. Every fault comes with its remedy. Exit status 1 where the run would fail.
    """
    import os
    from pathlib import Path

    from rich.console import Console

    from dnd.doctor import examine, show, to_json, would_fail
    from dnd.locking import run_folder

    import_from_here()
    settings, folder = given.pop("settings"), run_folder(out)
    store = Path(os.environ.get("DND_STORE") or folder.parent / ".dnd-store")
    with Console(stderr=True).status("looking") as status:
        checks = list(
            examine(
                runfile,
                options=chosen_options(given),
                settings=settings,
                out=folder,
                store=store,
                fresh=fresh,
                quick=quick,
                watch=lambda name: status.update(f"looking at: {name}"),
            )
        )
    if as_json:
        click.echo(json.dumps(to_json(checks), indent=1))
    else:
        show(make_console(), checks)
    return 1 if would_fail(checks) else 0
