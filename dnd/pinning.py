"""Write a model's entry in models.lock from a folder of its files."""

from __future__ import annotations

from importlib import util
from pathlib import Path, PurePosixPath

from dnd.errors import ModelError
from dnd.lockfile import SAFE, LockedFile, LockedModel, write_lock
from dnd.weights import Weights, loadable_files, sha256_of


def lock_folder(
    weights: Weights, name: str, folder: Path, *, role: str | None = None, licence: str | None = None
) -> LockedModel:
    """Pin a folder's files as the model `name` and rewrite the lock file.

    Of a model of a hub, files without a digest get theirs, and known digests must fit. Any other name
    stands for package data: the folder must lie in an importable Python package.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    old = weights.by_name.get(name)
    if old and old.source.startswith("hub:"):
        new = _complete(old, folder)
    else:
        files = tuple(_pin(folder, path) for path in sorted(loadable_files(folder)))
        if not files:
            raise ModelError(f"{folder} holds no file of a model")
        new = LockedModel(
            name=name,
            role=role or (old.role if old else "model"),
            source=_package_source(folder),
            licence=licence or (old.licence if old else "Apache-2.0"),
            gated=False,
            files=files,
        )
    write_lock(weights.lock, {**weights.by_name, name: new})
    return new


def _pin(folder: Path, path: str) -> LockedFile:
    file = folder / path
    if not path.endswith(SAFE):
        raise ModelError(f"{file}: only {', '.join(SAFE)} files are accepted", "Save the model as safetensors.")
    return LockedFile(path=path, size=file.stat().st_size, sha256=sha256_of(file))


def _complete(model: LockedModel, folder: Path) -> LockedModel:
    """A hub model with what was not known of its files taken from a folder that holds them.

    What is pinned must fit. As long as some file is not, the list itself may be short: all that a loader
    might read in the folder belongs to the model then.
    """
    whole = all(file.size is not None and file.sha256 is not None for file in model.files)
    known = {file.path: file for file in model.files}
    paths = list(known) if whole else sorted({*known, *loadable_files(folder)})
    files = []
    for path in paths:
        if not (folder / path).is_file():
            raise ModelError(f"{folder / path} is missing", "The folder must hold every file that models.lock lists.")
        found, pinned = _pin(folder, path), known.get(path, LockedFile(path=path))
        if pinned.sha256 not in (None, found.sha256) or pinned.size not in (None, found.size):
            raise ModelError(f"{folder / path} is not the file that models.lock pins", "Get that file anew.")
        files.append(found)
    return model.model_copy(update={"files": tuple(files)})


def _package_source(folder: Path) -> str:
    """ "package:top/rest" for a folder inside a Python package that is importable."""
    folder = folder.resolve()
    for parent in (folder, *folder.parents):
        if (parent / "__init__.py").exists() and not (parent.parent / "__init__.py").exists():
            spec = util.find_spec(parent.name)
            places = list(spec.submodule_search_locations or ()) if spec else []
            if any(Path(place).resolve() == parent for place in places):
                return f"package:{PurePosixPath(parent.name, *folder.relative_to(parent).parts)}"
    hint = "Only package data can be locked under a new name."
    raise ModelError(f"{folder} is not inside an importable Python package", hint)
