"""`dnd plugins`: what is installed; a new one; whether one keeps the rules."""

from __future__ import annotations

import click

from dnd.cli.console import print_table

KINDS = ("captioner", "summarizer", "generator", "scorer", "target", "probing-set")
"""That `new` can write."""


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List backends, targets and probing sets; write or check one.

    Those that cannot be used say why.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"--json is for the list, not for {context.invoked_subcommand!r}.")
        return
    from dnd.plugin.registry import Registry

    fields = ("kind", "name", "distribution", "version", "state", "reason")
    entries = sorted(Registry.load().entries, key=lambda e: (e.kind, e.name, e.distribution))
    rows = [{field: getattr(entry, field) for field in fields} for entry in entries]
    if as_json:
        import json

        click.echo(json.dumps(rows, indent=1))
        return
    print_table(fields, [list(row.values()) for row in rows])


@plugins.command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What it is.")
@click.option("--dir", "parent", metavar="DIR", default=".", help="The new folder NAME is made in it.  [default: .]")
def plugins_new(name: str, kind: str, parent: str) -> None:
    """Write a complete plugin, with tests, into the new folder DIR/NAME.

    It works as it is; change it into your own. Nothing that exists is overwritten.
    """
    from pathlib import Path

    from dnd.plugin.scaffold import write_plugin

    folder = write_plugin(name, kind, Path(parent))
    click.echo(f"{folder}: the {kind} {name!r}. Next:\n")
    click.echo(f"  cd {folder}\n  pip install -e '.[test]'\n  pytest")


@plugins.command("check")
@click.argument("name")
@click.option(
    "--kind", type=click.Choice((*KINDS, "encoder", "method")), help="Where plugins of several kinds share the name."
)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting: model=NAME.")
@click.option("--device", metavar="D", default="cpu", help="cpu, cuda or cuda:1.  [default: cpu]")
def plugins_check(name: str, kind: str | None, settings: tuple[str, ...], device: str) -> int:
    """Run the contract's rules on an installed plugin.

    Exit status 1 if any is broken.
    """
    from dnd.offline.environment import set_switches
    from dnd.testing.check import check_plugin

    set_switches()  # before anything imports torch
    broken = 0
    for entry, outcomes in check_plugin(name, kind, settings, device):
        click.echo(f"{entry.kind} {entry.name} ({entry.distribution} {entry.version})")
        for outcome in outcomes:
            click.echo(f"  {'BROKEN' if outcome.broken else 'ok    '}  {outcome.rule}")
            if outcome.broken:
                broken += 1
                click.echo(f"          {outcome.broken}")
    if broken:
        click.echo(f"Error: {broken} {'rule is' if broken == 1 else 'rules are'} broken", err=True)
    return 1 if broken else 0
