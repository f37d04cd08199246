"""models.lock: which models there are, and a name -> a local folder whose every byte is what was pinned.

A model's files are package data (source `package:dnd_x/weights/name`) or lie in the model store (source
`hub:owner/repo@revision`, folder <store>/<name>). Nothing here touches the network, and nothing that could
run code when it is read (a pickle, a script) is ever accepted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import util
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, get_args, get_origin

import pydantic

from dnd import api
from dnd.errors import ModelError, StoreError
from dnd.lockfile import SAFE, LockedFile, LockedModel, read_lock
from dnd.registry import suggest
from dnd.store import write_atomic

_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py", ".msgpack", ".h5", ".gguf", ".onnx")
"""Kinds that a loader might prefer to what is pinned."""


def store_folder() -> Path:
    """Where models of a hub lie: $DND_MODELS, or the platform's folder for a user's data."""
    import platformdirs

    return Path(os.environ.get("DND_MODELS") or platformdirs.user_data_path("dnd", appauthor=False) / "models")


def cache_folder() -> Path:
    """What may be deleted at any time: $DND_CACHE, or the platform's cache folder."""
    import platformdirs

    return Path(os.environ.get("DND_CACHE") or platformdirs.user_cache_path("dnd", appauthor=False))


def lock_path() -> Path:
    """The models.lock in use: of the checkout, or the one in the installed package."""
    here = Path(__file__).parent
    installed = here / "models.lock"
    return installed if installed.exists() else here.parent / "models.lock"


@dataclass(frozen=True)
class Weights:
    """The models of one lock file."""

    lock: Path
    by_name: dict[str, LockedModel]

    @classmethod
    def default(cls) -> Weights:
        """Those of the lock file in use."""
        return cls.read(lock_path())

    @classmethod
    def read(cls, lock: Path) -> Weights:
        return cls(lock, read_lock(lock))

    def find(self, name: str) -> LockedModel:
        try:
            return self.by_name[name]
        except KeyError:
            hint = f"{suggest(name, self.by_name)} `dnd models list` shows them."
            raise ModelError(f"there is no model {name!r} in {self.lock}", hint) from None

    def digest(self, name: str) -> str:
        """sha256 over the paths and digests of a model's files: what results depend on."""
        model = self.find(name)
        _refuse_unpinned(model)
        lines = [f"{file.sha256} {file.path}\n" for file in sorted(model.files, key=lambda f: f.path)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def folder(self, name: str) -> Path:
        """Where a model's files are or belong; ModelError where the package that carries them is missing."""
        model = self.find(name)
        scheme, _, place = model.source.partition(":")
        if scheme == "hub":
            return store_folder() / name
        package, *rest = PurePosixPath(place).parts
        spec = util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"the model {name!r} is part of the package {package!r}, which is not installed")
        return Path(spec.submodule_search_locations[0]).joinpath(*rest)

    def state(self, name: str) -> str:
        """ "here", "missing" or "not pinned", without a look at any file."""
        if unpinned_files(self.find(name)):
            return "not pinned"
        try:
            return "here" if self.folder(name).is_dir() else "missing"
        except ModelError:
            return "missing"

    def resolve(self, name: str, *, again: bool = False) -> Path:
        """The model's folder, after every file was found to be what models.lock says; else ModelError.

        A file is hashed once and then only when its size or time of change differs, or with `again`.
        """
        model, folder = self.find(name), self.folder(name)
        if not folder.is_dir():
            raise ModelError(f"the model {name!r} is not here: there is no folder {folder}", _how_to_get(model, folder))
        _refuse_unpinned(model)
        memory = _Memory(cache_folder() / "verified.json", again)
        for file in model.files:
            _verify(model, file, folder, memory)
        strangers = sorted(set(loadable_files(folder)) - {file.path for file in model.files})
        if strangers:
            listed = ", ".join(strangers[:3]) + (f" and {len(strangers) - 3} more" if len(strangers) > 3 else "")
            raise ModelError(
                f"{folder} holds files that models.lock does not list for {name!r}: {listed}",
                "A loader might read them in place of the pinned ones: move them elsewhere.",
            )
        memory.save()
        return folder

    def check(self, names: Iterable[str]) -> None:
        """`resolve` each; ModelError tells of all that fail."""
        problems = []
        for name in dict.fromkeys(names):
            try:
                self.resolve(name)
            except ModelError as error:
                problems.append(error)
        if len(problems) == 1:
            raise problems[0]
        if problems:
            lines = [f"\n  {error}. {error.hint}" for error in problems]
            raise ModelError(f"{len(problems)} models cannot be used:{''.join(lines)}")


def model_names(config: pydantic.BaseModel) -> list[str]:
    """The models that a plugin's settings name: values of type `dnd.api.ModelName`, optional or not."""
    found = []
    for key, info in type(config).model_fields.items():
        value = getattr(config, key)
        marked = any(_is_marker(part) for part in info.metadata) or _names_model(info.annotation)
        if isinstance(value, str) and marked:
            found.append(value)
    return found


def _is_marker(value: object) -> bool:
    return value in get_args(api.ModelName)[1:]


def _names_model(annotation: object) -> bool:
    """Whether ModelName is this type, or a part of it."""
    if get_origin(annotation) is Annotated and any(_is_marker(part) for part in get_args(annotation)[1:]):
        return True
    return any(_names_model(part) for part in get_args(annotation))


# --- checking files ----------------------------------------------------------------------------------


class _Memory:
    """Digests of files seen before, by path, size and time of change; losing it costs time only."""

    def __init__(self, path: Path, again: bool) -> None:
        self._path = path
        self._new: dict[str, list[Any]] = {}
        self._known = {} if again else self._read()

    def _read(self) -> dict[str, list[Any]]:
        with suppress(OSError, ValueError):
            found = json.loads(self._path.read_text("utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def digest(self, path: Path) -> str:
        stat = path.stat()
        key, state = os.path.abspath(path), [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(key)
        if isinstance(known, list) and known[:2] == state and isinstance(known[-1], str):
            return known[-1]
        digest = sha256_of(path)
        self._new[key] = [*state, digest]
        return digest

    def save(self) -> None:
        if self._new:
            with suppress(StoreError):
                write_atomic(self._path, json.dumps({**self._read(), **self._new}, indent=0).encode())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(model: LockedModel, file: LockedFile, folder: Path, memory: _Memory) -> None:
    path = folder / file.path
    try:
        size = path.stat().st_size
        wrong = f"has {size} bytes, not {file.size}" if size != file.size else ""
        if not wrong and (digest := memory.digest(path)) != file.sha256:
            wrong = f"has the sha256 {digest}, not {file.sha256}"
    except FileNotFoundError:
        wrong = "is missing"
    except OSError as error:
        wrong = f"cannot be read: {error.strerror or error}"
    if wrong:
        message = f"the model {model.name!r} is not what models.lock says: {path} {wrong}"
        raise ModelError(message, _how_to_get(model, folder))


def loadable_files(folder: Path) -> Iterator[str]:
    """Paths, relative with '/', of the files that a loader might read; hidden folders aside."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.suffix.lower() in SAFE + _UNSAFE and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()


def unpinned_files(model: LockedModel) -> list[str]:
    """Files whose size or digest models.lock does not know."""
    return [file.path for file in model.files if file.size is None or file.sha256 is None]


def _refuse_unpinned(model: LockedModel) -> None:
    if unpinned := unpinned_files(model):
        raise ModelError(
            f"models.lock does not know the digests of all files of {model.name!r}: {', '.join(unpinned)}",
            f"Where you trust your copy, `dnd models lock {model.name} FOLDER` pins them.",
        )


def _how_to_get(model: LockedModel, folder: Path) -> str:
    scheme, _, place = model.source.partition(":")
    if scheme == "package":
        return f"Reinstall the distribution that carries {PurePosixPath(place).parts[0]}."
    owner, _, revision = place.partition("@")
    gated = " (its licence must be accepted there first)" if model.gated else ""
    return (
        f"Copy the files of {owner} at revision {revision}{gated}, those that models.lock lists,"
        f" into {folder}; $DND_MODELS moves the store."
    )
