"""Bring a model's files into the store: from a hub, or from a folder. Each is checked before it has its name.

    <store>/NAME/...                      whole files only
    <store>/.fetching/NAME/REVISION/...   what has come of a file so far; a later fetch goes on there

What models.lock pins must fit. What it does not pin is checked against what the hub says of the file, and then
pinned. As long as some file is not pinned, the list may be short of small files (a tokenizer's, say): these are
added, weights never.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dnd.errors import ModelError
from dnd.models.digests import fits_etag, unlisted_files
from dnd.models.hub import Remote, Revision
from dnd.models.lockfile import LockedFile, LockedModel, check_distinct
from dnd.models.origins import HubOrigin, Origin, Wanted
from dnd.models.progress import byte_bar
from dnd.models.weights import Weights, how_to_get
from dnd.store.digests import DigestMemory, sha256_of
from dnd.store.folders import digests_path, store_folder
from dnd.store.locks import HeldError, held


@dataclass(frozen=True)
class Fetched:
    model: LockedModel
    brought: int
    """Files that were not here before."""
    pinned: tuple[str, ...]
    """Files whose size and sha256 models.lock did not know before."""
    lock: Path | None
    """The lock file that has them now."""


def fetch(
    weights: Weights, name: str, console: Console, origin: Origin | None = None, *, exactly: bool = False
) -> Fetched:
    """Make the model `name` whole in the store; without `origin` from the hub. ModelError keeps what was fetched.

    With `exactly` no small file is added to the list.
    """
    model = weights.find(name)
    if model.packaged or (model.local and origin is None):
        where = "part of a package" if model.packaged else "of your own"
        raise ModelError(f"the model {name!r} is no hub's, it is {where}", how_to_get(model))
    with store_lock(f"fetching-{name}"):
        if not exactly and not all(file.pinned for file in model.own):
            origin = origin or HubOrigin()
            model = _with_small_files(model, origin)
        return _fetch(weights, model, console, origin)


def _with_small_files(model: LockedModel, origin: Origin) -> LockedModel:
    known, parts = {file.path for file in model.own}, tuple(f"{part.under}/" for part in model.part)
    extra = [
        LockedFile(path=path)
        for path in sorted(usable_files(origin.list(Revision.of(model.source))))
        if path not in known and not path.endswith(".safetensors") and not path.startswith(parts)
    ]
    longer = model.model_copy(update={"own": (*model.own, *extra)})
    try:
        check_distinct(file.path for file in longer.files)
    except ValueError as error:
        raise ModelError(f"the model {model.name!r} cannot be fetched: {error}") from error
    return longer


def usable_files(paths: Iterable[str]) -> Iterator[str]:
    """Those of a repository's files that can be part of a model: plain names, safe kinds, no index of pickles."""
    for path in paths:
        with suppress(ValueError):
            if not path.endswith((".bin.index.json", ".h5.index.json")):
                yield LockedFile(path=path).path


def _fetch(weights: Weights, model: LockedModel, console: Console, origin: Origin | None) -> Fetched:
    folder = store_folder() / model.name
    memory = DigestMemory(digests_path())
    missing = [one for one in _files(model) if not (one.pin.pinned and _is_whole(one, memory))]
    found: dict[str, LockedFile] = {}
    brought = 0
    if missing:
        origin = origin or HubOrigin()
        plan = [(one, _agreed(one, origin.look(one), model.name)) for one in missing]
        here = {one.inside for one, remote in plan if not one.pin.pinned and _is_known(one, remote)}
        todo = [(one, remote) for one, remote in plan if one.inside not in here]
        _check_space(todo)
        megabytes = sum(remote.size or 0 for _, remote in todo) / 1e6
        console.print(f"{model.name}: {len(todo)} files to fetch, {megabytes:,.1f} MB", markup=False)
        with byte_bar(console, model.name, sum(remote.size or 0 for _, remote in todo)) as advance:
            for one, remote in todo:
                _bring(one, remote, origin, advance, model.name)
                console.print(f"  {one.inside}, {one.target.stat().st_size / 1e6:,.1f} MB", markup=False)
        for one in missing:
            found[one.inside] = LockedFile(
                path=one.inside, size=one.target.stat().st_size, sha256=one.pin.sha256 or memory.of(one.target)
            )
        shutil.rmtree(_partials(model.name), ignore_errors=True)
        brought = len(todo)
    pinned = tuple(model.unpinned)
    whole = model.with_pins(found)
    lock = weights.record([whole]) if pinned or weights.by_name.get(model.name) != whole else None
    if others := unlisted_files(whole, folder):
        hint = "A loader might read them in place of the pinned ones: move them elsewhere."
        raise ModelError(f"{folder} holds files that models.lock does not list: {', '.join(others[:3])}", hint)
    return Fetched(whole, brought, pinned, lock)


def _partials(name: str) -> Path:
    return store_folder() / ".fetching" / name


def _files(model: LockedModel) -> Iterator[Wanted]:
    for source, under, files in (
        (model.source, "", model.own),
        *((part.source, f"{part.under}/", part.files) for part in model.part),
    ):
        at = Revision.of(source)
        for file in files:
            inside = under + file.path
            target = store_folder() / model.name / inside
            yield Wanted(at, file.path, inside, file, target, _partials(model.name) / at.commit / f"{inside}.part")


def _is_whole(one: Wanted, memory: DigestMemory) -> bool:
    """Whether the store has the file as it is pinned."""
    with suppress(OSError):
        return one.target.stat().st_size == one.pin.size and memory.of(one.target) == one.pin.sha256
    return False


def _is_known(one: Wanted, remote: Remote) -> bool:
    """Whether the store has an unpinned file as the hub describes it; never where that says nothing."""
    with suppress(OSError):
        size = one.target.stat().st_size
        return len(remote.etag or "") in (40, 64) and size == remote.size and not _fault(one, remote, one.target)
    return False


def _agreed(one: Wanted, remote: Remote, name: str) -> Remote:
    """What the origin says of a file, if that can be what is pinned; refused before anything is fetched."""
    digest = remote.etag if remote.etag and len(remote.etag) == 64 else None
    for what, pinned, said in (("size", one.pin.size, remote.size), ("sha256", one.pin.sha256, digest)):
        if pinned is not None and said is not None and pinned != said:
            raise ModelError(
                f"the model {name!r} cannot be fetched: {one.path} of {one.at.repo} has the {what} {said} there,"
                f" models.lock pins {pinned}",
                "Nothing was fetched. Is the revision in models.lock the right one?",
            )
    return remote


def _bring(one: Wanted, remote: Remote, origin: Origin, advance: Callable[[int], None], name: str) -> None:
    try:
        one.partial.parent.mkdir(parents=True, exist_ok=True)
        origin.bring(one, remote, advance)
        if fault := _fault(one, remote, one.partial):
            one.partial.unlink()
            raise ModelError(
                f"the model {name!r} cannot be fetched: {one.path} of {one.at.repo} came and {fault}",
                "It was refused and deleted; the same command tries again. Twice the same: do not trust that source.",
            )
        one.target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(one.partial, one.target)
    except OSError as error:
        raise ModelError(
            f"cannot write {error.filename or one.target}: {error.strerror or error}",
            "Free some space, or move the store with $DND_MODELS; what was fetched is kept.",
        ) from error


def _fault(one: Wanted, remote: Remote, path: Path) -> str:
    """What is wrong with a file that has come, or ""."""
    size, wanted = path.stat().st_size, one.pin.size if one.pin.size is not None else remote.size
    if wanted not in (None, size):
        return f"has {size} bytes, not {wanted}"
    if one.pin.sha256 is not None:
        digest = sha256_of(path)
        return "" if digest == one.pin.sha256 else f"has the sha256 {digest}, not {one.pin.sha256}"
    return "" if fits_etag(path, remote.etag) else f"is not what the hub describes (etag {remote.etag})"


def _check_space(todo: Sequence[tuple[Wanted, Remote]]) -> None:
    had = sum(one.partial.stat().st_size for one, _ in todo if one.partial.is_file())
    check_space(store_folder(), sum(remote.size or 0 for _, remote in todo) - had)


def check_space(folder: Path, needed: int) -> None:
    """ModelError where the disk of a folder, which need not exist yet, has less space left than that."""
    while not folder.is_dir():
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ModelError(
            f"{folder} has {free / 1e9:,.1f} GB left, {needed / 1e9:,.1f} GB are needed",
            "Free some space, or move the store with $DND_MODELS.",
        )


@contextmanager
def store_lock(name: str) -> Iterator[None]:
    """Hold the store against another process that does the same; ModelError where one does."""
    path = store_folder() / ".locks" / f"{name}.lock"
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(path))
        except HeldError as error:
            hint = f"Wait until it is done, or stop it; it holds {path}."
            raise ModelError(f"another dnd is busy with that: {error}", hint) from None
        except OSError as error:
            hint = "$DND_MODELS names a folder that can be written, on a disk with locks (some NFS has none)."
            raise ModelError(f"cannot write {path}: {error.strerror or error}", hint) from error
        yield
