"""`dnd models`: models.lock and the model store."""

from __future__ import annotations

import click

from dnd.commands import print_table


@click.group()
def models() -> None:
    """What models.lock names: list, verify, lock."""


@models.command("list")
def models_list() -> None:
    """List them: role, size, licence, here or not."""
    from dnd.weights import Weights

    weights = Weights.default()
    rows = [
        [m.name, m.role, f"{m.size / 1e6:,.1f}", m.licence, weights.state(m.name), m.source]
        for m in weights.by_name.values()
    ]
    print_table(("name", "role", "MB", "licence", "state", "source"), rows)


@models.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1)
def models_verify(names: tuple[str, ...]) -> int:
    """Compare files with models.lock.

    Without names: those of all models that are here.
    """
    from dnd.errors import ModelError
    from dnd.weights import Weights

    weights = Weights.default()
    wrong = 0
    for name in names or [name for name in weights.by_name if weights.state(name) == "here"]:
        try:
            click.echo(f"{name}: ok, {weights.resolve(name, again=True)}")
        except ModelError as error:
            wrong += 1
            click.echo(f"Error: {error}", err=True)
            click.echo(f"Hint: {error.hint}", err=True)
    return 1 if wrong else 0


@models.command("lock")
@click.argument("name")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--role", help="What it is for: captioner, summarizer, generator, scorer, target or encoder.")
@click.option("--licence", help="SPDX name.  [default: Apache-2.0]")
def models_lock(name: str, folder: str, role: str | None, licence: str | None) -> None:
    """Pin the files in FOLDER as the model NAME.

    FOLDER is package data, or a copy of a hub's model some of whose digests models.lock does not know.
    """
    from pathlib import Path

    from dnd.pinning import lock_folder
    from dnd.weights import Weights

    weights = Weights.default()
    model = lock_folder(weights, name, Path(folder), role=role, licence=licence)
    click.echo(f"{model.name}: {len(model.files)} files, {model.size / 1e6:.1f} MB, {model.source} in {weights.lock}")
