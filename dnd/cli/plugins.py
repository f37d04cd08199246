"""`dnd plugins`: what is installed; a new one; whether one keeps the rules."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from dnd.cli import complete
from dnd.cli.console import print_table
from dnd.text import json_text

KINDS = ("captioner", "summarizer", "generator", "scorer", "target", "probing-set", "method")
"""That `new` can write."""


class _PluginsGroup(click.Group):
    """`dnd plugins new` and `check` are commands; any other word is the name of a plugin to show."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "show", plugins_show, args
        return super().resolve_command(context, args)

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        return [*super().shell_complete(context, incomplete), *complete.any_plugin(context, None, incomplete)]


@click.group(cls=_PluginsGroup, invoke_without_command=True, subcommand_metavar="[NAME | new | check]")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """List plugins; show one with its settings, write or check one.

    Backends, targets, probing sets and methods. Those that cannot be used say why.
    """
    if context.invoked_subcommand is not None:
        if as_json and context.invoked_subcommand in ("new", "check"):
            raise click.UsageError(f"--json is for the list, not for {context.invoked_subcommand!r}.")
        return
    from dnd.plugin.registry import Registry

    fields = ("kind", "name", "distribution", "version", "state", "reason")
    entries = sorted(Registry.load().entries, key=lambda e: (e.kind, e.name, e.distribution))
    rows = [{**{field: getattr(entry, field) for field in fields}, "description": entry.summary} for entry in entries]
    if as_json:
        click.echo(json_text(rows, indent=1))
        return
    shown = [(entry.kind, entry.name, entry.summary or f"{entry.state}: {entry.reason}") for entry in entries]
    print_table(("kind", "name", "what it is"), shown)


@click.command("show")
@click.argument("name")
@click.option("--kind", metavar="KIND", help="Where plugins of several kinds share the name.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.pass_context
def plugins_show(context: click.Context, name: str, kind: str | None, as_json: bool) -> None:
    """Show one plugin: what it is, its settings with types and defaults, the models that it names, an example."""
    from dnd.cli.plugin_page import page, record
    from dnd.plugin.registry import Registry

    entries = Registry.load().named(name, kind)
    if as_json or (context.parent and context.parent.params["as_json"]):
        click.echo(json_text([record(entry) for entry in entries], indent=1))
        return
    click.echo("\n\n".join(page(entry) for entry in entries))


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
@click.argument("name", shell_complete=complete.any_plugin)
@click.option("--kind", type=click.Choice((*KINDS, "encoder")), help="Where plugins of several kinds share the name.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting: model=NAME.")
@click.option("--device", metavar="D", default="cpu", help="cpu, cuda or cuda:1.  [default: cpu]")
def plugins_check(name: str, kind: str | None, settings: tuple[str, ...], device: str) -> int:
    """Run the contract's rules on an installed plugin.

    Exit status 1 if any is broken.
    """
    from dnd.offline.environment import set_switches
    from dnd.testing.check import check_plugin

    set_switches()  # before anything imports torch
    broken = kept = 0
    for entry, outcomes in check_plugin(name, kind, settings, device):
        click.echo(f"{entry.kind} {entry.name} ({entry.distribution} {entry.version})")
        for outcome in outcomes:
            click.echo(f"  {'BROKEN' if outcome.broken else 'ok    '}  {outcome.rule}")
            kept += not outcome.broken
            if outcome.broken:
                broken += 1
                click.echo(f"          {outcome.broken}")
    if broken:
        click.echo(f"Error: {broken} {'rule is' if broken == 1 else 'rules are'} broken, {kept} kept", err=True)
        return 1
    click.echo(f"{name} keeps all {kept} rules.")
    return 0
