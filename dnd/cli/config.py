"""`dnd config`, `dnd runfiles` and `dnd init`: run files, resolved, listed and begun."""

from __future__ import annotations

from typing import Any

import click

from dnd.cli.console import print_table
from dnd.cli.options import chosen_options, run_options
from dnd.text import json_text


@click.command()
@run_options
@click.option("--schema", is_flag=True, help="Print instead the JSON schema of run files, for editors.")
def config(runfile: str | None, out: str | None, fresh: bool, schema: bool, **given: Any) -> None:
    """Print the resolved run file; run nothing.

    Every default is written out. Takes the arguments of `dnd run`: `dnd config photos --probe FOLDER > mine.toml`.
    """
    from dnd.config.read import read_run
    from dnd.plugin.registry import Registry

    if schema:
        import json

        from dnd.config.schema import run_schema

        click.echo(json.dumps(run_schema(Registry.load()), indent=1, ensure_ascii=False))
        return

    settings = given.pop("settings")
    run = read_run(runfile, Registry.load(), options=chosen_options(given), settings=settings)
    click.echo(run.to_toml(), nl=False)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def runfiles(as_json: bool) -> None:
    """List the installed run files, a line each.

    `dnd run NAME` uses one, `dnd config NAME` prints it.
    """
    from dataclasses import asdict

    from dnd.config.describe import runfiles

    found = runfiles()
    if as_json:
        click.echo(json_text([asdict(one) for one in found], indent=1))
        return
    print_table(("name", "what it is"), [(one.name, one.summary) for one in found])


_BEGUN = """\
# A run of dnd: `dnd run {file}` labels the units, `dnd doctor {file}` says whether it can work here.
# Every setting that is not here has the value of the base; `dnd config {file}` prints all of them.

# An installed run file to start from; `dnd runfiles` lists them.
base = "{base}"

[target]
# A plugin's target (`dnd plugins`), or "module:function" -> (torch.nn.Module, preprocess).
name = "{target}"
# As `named_modules()` calls them.
layers = ["{layer}"]
# "all", or "0-9,12".
units = "{units}"

[probing]
# A folder of images, or a probing set (`dnd plugins`).
set = "{probe}"

# [exemplars]
# k = 10    (docs/reference.md has every setting; `dnd plugins NAME` those of a backend)
"""


@click.command()
@click.argument("file", default="run.toml", type=click.Path(dir_okay=False))
@click.option("--base", metavar="NAME", help="Installed run file to start from.  [default: asked for]")
@click.option("--target", metavar="NAME", help="As in `dnd run`.  [default: asked for]")
@click.option("--layer", metavar="LAYER", help="As in `dnd run`.  [default: asked for]")
@click.option("--units", metavar="0-9,12|all", default="all", show_default=True, help="Units of the layer.")
@click.option("--probe", metavar="NAME|FOLDER", help="As in `dnd run`.  [default: asked for]")
def init(file: str, base: str | None, target: str | None, layer: str | None, units: str, probe: str | None) -> None:
    """Write a commented run file to FILE.

    Asks for what it cannot know. Nothing that exists is overwritten.
    """
    from pathlib import Path

    from dnd.config.describe import runfiles
    from dnd.errors import UsageError
    from dnd.text import suggest

    path = Path(file)
    if path.exists():
        raise UsageError(f"{path} exists", "Name another file: dnd init FILE.")
    base = base or click.prompt("Base run file (full: with a GPU; photos: without)", default="full")
    known = [one.name for one in runfiles()]
    if base not in known:
        raise UsageError(f"there is no installed run file {base!r}", suggest(base, known))
    values = {
        "target": target or click.prompt("Target (a plugin's name, or module:function)"),
        "layer": layer or click.prompt("Layer (a name of named_modules())"),
        "probe": probe or click.prompt("Probing images (a folder, or a probing set)"),
    }
    text = _BEGUN.format(file=file, base=base, units=units, **{key: _quoted(value) for key, value in values.items()})
    try:
        with path.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", "Name another file: dnd init FILE.") from error
    click.echo(f"{path}. Next: dnd doctor {path}")


def _quoted(text: str) -> str:
    """The inside of a TOML string."""

    return json_text(text)[1:-1]
