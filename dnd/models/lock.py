"""Write a model's entry in models.lock from a folder of its files, or from a hub's repository."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatch
from importlib import util
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pydantic

from dnd.errors import ModelError, first_fault
from dnd.files import open_regular
from dnd.models.digests import loadable_files, within
from dnd.models.lockfile import ANY_ROLE, SAFE, LockedFile, LockedModel
from dnd.models.weights import Weights
from dnd.store.digests import sha256_of
from dnd.store.folders import store_folder

if TYPE_CHECKING:
    from rich.console import Console

    from dnd.models.fetch import Fetched


_POINTER = b"version https://git-lfs"


def lock_folder(
    weights: Weights, name: str, folder: Path, *, role: str | None = None, licence: str | None = None
) -> LockedModel:
    """Pin the files of a hub's model, or of package data, as the model `name`, and rewrite the lock file.

    Of a model of a hub, files without a digest get theirs, and known digests must fit.
    """
    old = weights.by_name.get(name)
    if old and not old.packaged:
        new = _complete(old, folder)
    else:
        files = tuple(_pin(folder, path) for path in sorted(loadable_files(folder)))
        if not files:
            raise ModelError(f"{folder} holds no file of a model")
        source = package_source(folder)
        if source is None:
            raise ModelError(f"{folder} is not inside an importable Python package, as {name!r} is")
        new = make_entry(
            name=name,
            role=role or (old.role if old else ANY_ROLE),
            source=source,
            licence=licence or (old.licence if old else "Apache-2.0"),
            gated=False,
            files=files,
        )
    weights.record([new])
    return new


def lock_own(
    weights: Weights,
    name: str,
    folder: Path,
    console: Console,
    *,
    role: str | None = None,
    licence: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    link: bool = False,
) -> Fetched:
    """Take a folder of the user's own into the store as the model `name`: its safetensors, and the small files beside
    them. What could run code when it is read stays behind."""
    from dnd.models.fetch import fetch, usable_files
    from dnd.models.origins import FolderOrigin

    paths = sorted(_chosen(usable_files(loadable_files(folder)), include, exclude))
    if not any(path.endswith(".safetensors") for path in paths):
        raise ModelError(f"{folder} has no safetensors among its files", "Save the model as safetensors.")
    for path in paths:
        if path.endswith(".safetensors"):
            _check_whole(within(folder, path))
    old = weights.by_name.get(name)
    entry = make_entry(
        name=name,
        role=role or (old.role if old else ANY_ROLE),
        source="local",
        licence=licence or (old.licence if old else "unknown"),
        gated=False,
        files=tuple(_pin(folder, path) for path in paths),
    )
    if old and not old.same_files(entry):
        raise ModelError(
            f"the model {name!r} is locked already, with other files ({old.source})",
            f"Choose another name; or take it out of the lock file and delete {store_folder() / name} first.",
        )
    known = replace(weights, by_name={**weights.by_name, name: entry})
    fetched = fetch(known, name, console, FolderOrigin(folder, link=link), exactly=True)
    weights.record([entry])
    return fetched


def _chosen(paths: Iterable[str], include: Iterable[str], exclude: Iterable[str]) -> list[str]:
    """Those that a pattern includes and none excludes."""
    include, exclude = tuple(include) or ("*",), tuple(exclude)
    return [
        path
        for path in paths
        if any(fnmatch(path, pattern) for pattern in include) and not any(fnmatch(path, pattern) for pattern in exclude)
    ]


def lock_repository(
    weights: Weights,
    name: str,
    repository: str,
    console: Console,
    *,
    role: str | None = None,
    licence: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> Fetched:
    """Fetch "owner/name@commit, branch or tag" from the hub as the model `name`, and pin every file.

    Without `include` (patterns of paths) that is all safetensors, and the small files beside them.
    """
    from dnd.models.fetch import fetch, usable_files
    from dnd.models.hub import Hub

    repo, _, revision = repository.partition("@")
    stand_in = {"licence": "", "gated": False, "files": (LockedFile(path="config.json"),)}
    make_entry(name=name, role=ANY_ROLE, source=f"hub:{repo}@{0:040}", **stand_in)  # a wrong name: before any download
    listing = Hub().list(repo, revision)
    source = f"hub:{repo}@{listing.revision.commit}"
    old = weights.by_name.get(name)
    if old and old.source != source:
        hint = f"Choose another name, or take the entry out of the lock file first. The hub has {source}."
        raise ModelError(f"the model {name!r} is pinned to {old.source}", hint)
    paths = _chosen(usable_files(listing.files), include, exclude)
    if not any(path.endswith(".safetensors") for path in paths):
        others = [path for path in listing.files if path.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack"))]
        what = f"only {', '.join(others[:3])}, which could run code" if others else "no weights at all"
        hint = "Take a revision or a repository that has them, or convert the weights yourself."
        raise ModelError(f"{repo} has no safetensors among these files at {listing.revision.commit}: {what}", hint)
    entry = old or make_entry(
        name=name,
        role=role or ANY_ROLE,
        source=source,
        licence=licence or listing.licence,
        gated=listing.gated,
        files=tuple(LockedFile(path=path) for path in paths),
    )
    return fetch(replace(weights, by_name={**weights.by_name, name: entry}), name, console, exactly=old is None)


def make_entry(**fields: object) -> LockedModel:
    """A LockedModel; ModelError where a field does not fit, such as a name with a '/'."""
    try:
        return LockedModel.model_validate(fields)
    except pydantic.ValidationError as error:
        raise ModelError(f"cannot lock this: {first_fault(error)}") from error


def _check_whole(file: Path) -> None:
    """ModelError for what is no whole safetensors file: cut short, or a pointer to one that git did not fetch."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        hint = "Run `git lfs pull` there." if _is_pointer(file) else "Get that file anew."
        raise ModelError(f"{file} is not a whole safetensors file: {error}", hint) from error


def _is_pointer(file: Path) -> bool:
    """Whether it stands for a file that Git LFS keeps elsewhere."""
    try:
        with open_regular(file) as opened:
            return opened.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def _pin(folder: Path, path: str) -> LockedFile:
    file = within(folder, path)
    if not path.endswith(SAFE):
        raise ModelError(
            f"{folder / path}: only {', '.join(SAFE)} files are accepted", "Save the model as safetensors."
        )
    return LockedFile(path=path, size=file.stat().st_size, sha256=sha256_of(file))


def _complete(model: LockedModel, folder: Path) -> LockedModel:
    """A hub model with what was not known of its files taken from a folder that holds them.

    What is pinned must fit. As long as some file is not, the list itself may be short: all that a loader
    might read in the folder belongs to the model then.
    """
    known = {file.path: file for file in model.files}
    paths = sorted({*known, *loadable_files(folder)}) if model.unpinned else list(known)
    found = {}
    for path in paths:
        if not (folder / path).is_file():
            raise ModelError(f"{folder / path} is missing", "The folder must hold every file that models.lock lists.")
        found[path], pinned = _pin(folder, path), known.get(path, LockedFile(path=path))
        if pinned.sha256 not in (None, found[path].sha256) or pinned.size not in (None, found[path].size):
            raise ModelError(f"{folder / path} is not the file that models.lock pins", "Get that file anew.")
    whole = model.with_pins(found)
    return whole.model_copy(update={"own": (*whole.own, *(found[path] for path in paths if path not in known))})


def package_source(folder: Path) -> str | None:
    """ "package:top/rest" for a folder inside a Python package that is importable; else None."""
    folder = folder.resolve()
    for parent in (folder, *folder.parents):
        if (parent / "__init__.py").exists() and not (parent.parent / "__init__.py").exists():
            spec = util.find_spec(parent.name)
            places = list(spec.submodule_search_locations or ()) if spec else []
            if any(Path(place).resolve() == parent for place in places):
                return f"package:{PurePosixPath(parent.name, *folder.relative_to(parent).parts)}"
    return None
