"""Digests of files, and which files of a folder a loader might read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from dnd.errors import ModelError
from dnd.files import open_regular
from dnd.models.lockfile import SAFE, LockedModel
from dnd.store.digests import DigestMemory, sha256_of

_UNSAFE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py", ".msgpack", ".h5", ".gguf", ".onnx")
"""Kinds that a loader might prefer to what is pinned."""


def size_of(path: Path) -> int | None:
    """Bytes; None where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def fits_etag(path: Path, etag: str | None) -> bool:
    """Whether a file is what a hub's etag says: the sha256 of a large file, git's sha1 of a small one, or unknown."""
    if etag is None or len(etag) not in (40, 64):
        return True
    if len(etag) == 64:
        return sha256_of(path) == etag
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == etag


def first_fault(model: LockedModel, folder: Path, memory: DigestMemory) -> str:
    """What is wrong with the first file that is not what its pins say: "PATH is missing"; "" if all are."""
    for file in model.files:
        path = folder / file.path
        try:
            size = path.stat().st_size
            if file.size not in (None, size):
                return f"{path} has {size} bytes, not {file.size}"
            if file.sha256 not in (None, digest := memory.of(path)):
                return f"{path} has the sha256 {digest}, not {file.sha256}"
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read: {error.strerror or error}"
    return ""


def loadable_files(folder: Path) -> Iterator[str]:
    """Paths, relative with '/', of the files that a loader might read; hidden folders aside."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.suffix.lower() in SAFE + _UNSAFE and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()


def within(folder: Path, path: str | Path) -> Path:
    """The file that is meant, behind links. ModelError where one leads out of the folder (of a Hugging Face cache: out
    of its `blobs`), to what was never meant to be copied, packed and passed on."""
    file, home = (folder / path).resolve(), folder.resolve()
    cache = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not file.is_relative_to(home) and not file.is_relative_to(cache.resolve()):
        raise ModelError(
            f"{folder / path} is a link that leads out of {folder}", "Put a copy of the file in its place."
        )
    return file


def unlisted_files(model: LockedModel, folder: Path) -> list[str]:
    """Files that a loader might read and that the lock file does not list."""
    return sorted(set(loadable_files(folder)) - {file.path for file in model.files})
