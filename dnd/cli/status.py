"""`dnd status`: how far a run is, asked from anywhere."""

from __future__ import annotations

import click

from dnd.text import json_text


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="What status.json says, with the state as found.")
def status(run: str, as_json: bool) -> None:
    """How far the run in the folder RUN is, or how it ended.

    The state is running, done, failed, interrupted or dead: killed, or without a sign of life for a minute.
    """
    from pathlib import Path

    from dnd.runtime.status import read_status, tell

    found = read_status(Path(run))
    click.echo(json_text(found, indent=1) if as_json else tell(run, found))
