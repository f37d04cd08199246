"""`dnd models`: models.lock and the model store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dnd.cli import complete
from dnd.cli.console import make_console, print_table
from dnd.models import ROLES

if TYPE_CHECKING:
    from dnd.models.fetch import Fetched
    from dnd.models.weights import Weights


@click.group()
def models() -> None:
    """List, verify, fetch, lock, pack and unpack models.

    models.lock says which there are. `fetch`, and `lock` of a repository, are the only commands that touch the network.
    """


@models.command("list")
@click.option("--long", "is_long", is_flag=True, help="How many of its files are pinned, and its source, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models_list(is_long: bool, as_json: bool) -> None:
    """List them: role, size, here or not, licence.

    A size with a + leaves out files whose size models.lock does not know yet; ? is no size at all.
    """
    import json

    from dnd.models.weights import Weights

    weights = Weights.default()
    rows = [_facts(weights, name) for name in weights.by_name]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    cells = [
        [
            row["name"],
            row["role"],
            weights.find(row["name"]).megabytes,
            row["state"],
            f"{row['licence']}{' (gated)' if row['gated'] else ''}",
            *([f"{row['pinned']}/{row['files']}", " + ".join(row["sources"])] if is_long else []),
        ]
        for row in rows
    ]
    heads = ("name", "role", "MB", "state", "licence", *(["pinned", "source"] if is_long else []))
    print_table(heads, cells, narrow=not is_long)
    if any(row["state"] == "not pinned" for row in rows):
        click.echo("\n+ and ?: models.lock does not know the size of every file; not pinned: nor the")
        click.echo("digest. `dnd models fetch NAME` completes both.")


def _facts(weights: Weights, name: str) -> dict[str, Any]:
    """`bytes` are those of the `sizes` files whose size is known, `pinned` counts those with size and digest."""
    model = weights.find(name)
    return {
        "name": name,
        "role": model.role,
        "bytes": model.size,
        "licence": model.licences,
        "gated": model.gated or any(part.gated for part in model.part),
        "files": len(model.files),
        "sizes": sum(file.size is not None for file in model.files),
        "pinned": len(model.files) - len(model.unpinned),
        "state": weights.state(name),
        "sources": [model.source, *(part.source for part in model.part)],
    }


@models.command("verify")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete.model)
def models_verify(names: tuple[str, ...]) -> int:
    """Compare files with models.lock.

    Without names: those of all models that are here.
    """
    from dnd.errors import ModelError
    from dnd.models.weights import Weights

    weights = Weights.default()
    wrong = 0
    for name in names or [name for name in weights.by_name if weights.state(name) in ("here", "incomplete")]:
        try:
            click.echo(f"{name}: ok, {weights.resolve(name, again=True)}")
        except ModelError as error:
            wrong += 1
            click.echo(f"Error: {error}", err=True)
            click.echo(f"Hint: {error.hint}", err=True)
    return 1 if wrong else 0


@models.command("fetch")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete.model)
@click.option("--runfile", metavar="RUNFILE", help="Fetch the models that this run file names.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="As for `dnd run`, with --runfile.")
@click.option(
    "--from",
    "folder",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Take the files from there, a copy or a Hugging Face cache, and not from the network.",
)
@click.option("--link", is_flag=True, help="With --from: link the files instead of copying them.")
def models_fetch(
    names: tuple[str, ...], runfile: str | None, settings: tuple[str, ...], folder: str | None, link: bool
) -> None:
    """Bring models into the store, every file checked.

    An interrupted fetch goes on where it was when the same command is given again.
    """
    from pathlib import Path

    from dnd.models.fetch import fetch
    from dnd.models.origins import FolderOrigin
    from dnd.models.weights import Weights
    from dnd.store.folders import store_folder

    if link and not folder:
        raise click.UsageError("--link goes with --from.")
    weights = Weights.default()
    wanted = _wanted(names, runfile, settings)
    if not wanted:
        raise click.UsageError("Name the models, or a run file with --runfile.")
    console = make_console()
    with _kept():
        for name in [name for name in wanted if name in names or not weights.find(name).packaged]:
            origin = FolderOrigin(Path(folder), link=link) if folder else None
            _tell(fetch(weights, name, console, origin), str(store_folder() / name))


@contextmanager
def _kept() -> Iterator[None]:
    """Say what an interrupt leaves."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\nWhat has come is kept: the same command goes on from there.", err=True)
        raise


def _wanted(names: tuple[str, ...], runfile: str | None, settings: tuple[str, ...]) -> list[str]:
    """The names given, and those in a run file."""
    if not runfile:
        if settings:
            raise click.UsageError("--set goes with --runfile.")
        return list(dict.fromkeys(names))
    from dnd.config.packed import read_needs

    return list(dict.fromkeys((*names, *read_needs(runfile, settings)[1])))


def _tell(fetched: Fetched, folder: str) -> None:
    name, files = fetched.model.name, len(fetched.model.files)
    if fetched.pinned:
        click.echo(f"{name}: {len(fetched.pinned)} files pinned now in {fetched.lock}")
    brought = f"{fetched.brought} of {files} files fetched" if fetched.brought else f"all {files} files were here"
    click.echo(f"{name}: whole, {brought}, {fetched.model.size / 1e6:,.1f} MB in {folder}")


@models.command("lock")
@click.argument("name")
@click.argument("place", metavar="FOLDER|REPO@REV")
@click.option("--role", type=click.Choice(ROLES), help="What it is for.  [default: anything]")
@click.option("--licence", help="SPDX name.  [default: the repository's; Apache-2.0 of package data; else unknown]")
@click.option("--include", metavar="PATTERN", multiple=True, help="Only these files: 'encoder/*'.")
@click.option("--exclude", metavar="PATTERN", multiple=True, help="Not these files: '*.fp16.safetensors'.")
@click.option("--link", is_flag=True, help="Link the files of FOLDER into the store instead of copying them.")
def models_lock(
    name: str,
    place: str,
    role: str | None,
    licence: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    link: bool,
) -> None:
    """Pin files as the model NAME.

    FOLDER is a model of your own: its safetensors and small files are copied into the store, and pinned. Or it is
    package data, or a copy of a hub's model some of whose digests models.lock does not know.

    REPO@REV is a repository of the hub at a commit, branch or tag: its safetensors and small files are fetched
    into the store, and pinned.
    """
    import re
    from pathlib import Path

    from dnd.errors import UsageError
    from dnd.models.lock import lock_folder, lock_own, lock_repository, package_source
    from dnd.models.weights import Weights
    from dnd.store.folders import store_folder

    weights = Weights.default()
    if not Path(place).is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+@[\w./-]+", place):
        with _kept():
            done = lock_repository(
                weights, name, place, make_console(), role=role, licence=licence, include=include, exclude=exclude
            )
        _tell(done, str(store_folder() / name))
        return
    if not Path(place).is_dir():
        raise UsageError(f"{place} is no folder, and not of the form owner/name@revision", "For example openai/x@main.")
    old = weights.by_name.get(name)
    if old.local if old else package_source(Path(place)) is None:
        with _kept():
            done = lock_own(
                weights,
                name,
                Path(place),
                make_console(),
                role=role,
                licence=licence,
                include=include,
                exclude=exclude,
                link=link,
            )
        _tell(done, str(store_folder() / name))
        return
    model = lock_folder(weights, name, Path(place), role=role, licence=licence)
    click.echo(f"{model.name}: {len(model.files)} files, {model.size / 1e6:.1f} MB, {model.source} in {weights.lock}")


@models.command("pack")
@click.argument("out", type=click.Path(dir_okay=False))
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=complete.model)
@click.option("--runfile", metavar="RUNFILE", help="Pack it, and the models that it names.")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="As for `dnd run`, with --runfile.")
@click.option(
    "--wheels",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Pack these wheels too, as `pip download` has put them there.",
)
def models_pack(
    out: str, names: tuple[str, ...], runfile: str | None, settings: tuple[str, ...], wheels: str | None
) -> None:
    """Put models into one archive OUT, for `dnd models unpack`.

    Without names and run file: every model of the store.
    """
    from pathlib import Path

    from dnd.config.packed import packed_runfile
    from dnd.models.pack import pack
    from dnd.models.weights import Weights

    weights = Weights.default()
    wanted = _wanted(names, runfile, settings)
    if not (names or runfile):
        there = ("here", "incomplete")
        wanted = [n for n, model in weights.by_name.items() if not model.packaged and weights.state(n) in there]
    packed = pack(
        weights,
        wanted,
        Path(out),
        make_console(),
        runfile=packed_runfile(runfile, settings) if runfile else None,
        wheels=Path(wheels) if wheels else None,
    )
    for name in sorted(set(wanted)):
        model = weights.find(name)
        where = "not packed, it comes with its package" if model.packaged else f"{model.size / 1e6:,.1f} MB"
        click.echo(f"{name}: {where}")
    click.echo(f"{out}: {packed.files} files, {packed.size / 1e6:,.1f} MB, sha256 {packed.sha256}")


@models.command("unpack")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--add", is_flag=True, help="Take on models that models.lock does not know.")
@click.option("--into", metavar="FOLDER", type=click.Path(file_okay=False), help="Write its run file and wheels there.")
def models_unpack(file: str, add: bool, into: str | None) -> None:
    """Put the models of an archive FILE into the store.

    Nothing is visible there before every digest was found right.
    """
    from pathlib import Path

    from dnd.models.pack import unpack
    from dnd.models.weights import Weights
    from dnd.store.folders import store_folder

    weights = Weights.default()
    done = unpack(weights, Path(file), make_console(), add=add, into=Path(into) if into else None)
    for name in done.same:
        click.echo(f"{name}: was here already, every byte")
    for name in done.new:
        click.echo(f"{name}: {weights.find(name).size / 1e6:,.1f} MB in {store_folder() / name}")
    if done.recorded:
        click.echo(f"pinned now in {done.lock}: {', '.join(done.recorded)}")
    for path in done.written:
        click.echo(f"{path}")
    if done.left:
        click.echo(f"{done.left} other files (run file, wheels) left in the archive: --into FOLDER writes them")
    click.echo(f"{file}: whole, sha256 {done.sha256}")
