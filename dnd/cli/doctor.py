"""`dnd doctor`: can a run work here?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from dnd.cli.console import make_console
from dnd.cli.options import chosen_options, run_options

if TYPE_CHECKING:
    from rich.console import Console

    from dnd.doctor.check import Check


@click.command()
@run_options
@click.option("--quick", is_flag=True, help="Believe model files that have the right size: hash none.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def doctor(runfile: str | None, out: str | None, fresh: bool, quick: bool, as_json: bool, **given: Any) -> int:
    """Look for what would make a run fail, before any GPU time.

    Takes the words of `dnd run` and speaks of the run that they mean: its devices, models, plugins, images,
    target, layers, memory and disk. Every fault comes with its remedy. Exit status 1 where the run would fail.
    """

    from rich.console import Console

    from dnd.doctor.examine import examine, to_json, would_fail
    from dnd.store.folders import results_folder
    from dnd.store.locks import run_folder

    settings, folder = given.pop("settings"), run_folder(out)
    with Console(stderr=True).status("looking") as status:
        checks = list(
            examine(
                runfile,
                options=chosen_options(given),
                settings=settings,
                out=folder,
                store=results_folder(folder),
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


_STYLE = {"ok": "green", "warning": "yellow", "fault": "bold red"}


def show(console: Console, checks: Sequence[Check]) -> None:
    """The table, remedies under what they mend, and the verdict."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("check", overflow="fold", max_width=max(30, console.width // 3))
    table.add_column("state")
    table.add_column("detail", overflow="fold")
    for check in checks:
        detail = escape(check.detail)
        if check.remedy:
            detail += f"\n[bold]-> {escape(check.remedy)}[/bold]"
        table.add_row(escape(check.id), f"[{_STYLE[check.state]}]{check.state}[/]", detail)
    console.print(table)
    console.print()
    counts = {state: sum(check.state == state for check in checks) for state in ("fault", "warning")}
    parts = [f"{n} {state}{'s' if n > 1 else ''}" for state, n in counts.items() if n]
    verdict = "This run would fail" if counts["fault"] else "This run can begin"
    console.print(f"{verdict}: {', '.join(parts)}." if parts else f"{verdict}.", style="bold")
