"""`dnd plugins`: what is installed."""

from __future__ import annotations

import click

from dnd.commands import print_table


@click.command()
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
    print_table(fields, [list(row.values()) for row in rows])
