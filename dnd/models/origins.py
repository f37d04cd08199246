"""Where a model's files can come from: a hub, or a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dnd.errors import ModelError
from dnd.files import open_regular
from dnd.models.digests import within
from dnd.models.hub import Hub, Remote, Revision
from dnd.models.lockfile import LockedFile


@dataclass(frozen=True)
class Wanted:
    """A file of a model that is not in the store yet."""

    at: Revision
    path: str
    """In its repository."""
    inside: str
    """In the model's folder."""
    pin: LockedFile
    target: Path
    partial: Path


class Origin(Protocol):
    """Where files come from."""

    def list(self, at: Revision) -> Iterable[str]:
        """Paths of a repository's files."""

    def look(self, wanted: Wanted) -> Remote: ...

    def bring(self, wanted: Wanted, remote: Remote, advance: Callable[[int], None]) -> None:
        """Complete `wanted.partial`."""


class HubOrigin:
    """The hub."""

    def __init__(self) -> None:
        self._hub = Hub()

    def list(self, at: Revision) -> Iterable[str]:
        return self._hub.list(at.repo, at.commit).files

    def look(self, wanted: Wanted) -> Remote:
        return self._hub.look(wanted.at, wanted.path)

    def bring(self, wanted: Wanted, remote: Remote, advance: Callable[[int], None]) -> None:
        self._hub.download(wanted.at, wanted.path, remote, wanted.partial, advance)


class FolderOrigin:
    """A folder: of one model's files, or a Hugging Face cache (its `hub` folder, or one above)."""

    def __init__(self, folder: Path, *, link: bool = False) -> None:
        """With `link` files are linked, not copied: no space is used, but what changes the one changes the other."""
        self._folder, self._link = folder, link

    def list(self, at: Revision) -> Iterable[str]:
        folder = next((self._folder / p for p in _cached(at) if (self._folder / p).is_dir()), self._folder)
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def look(self, wanted: Wanted) -> Remote:
        """The name of a cache's blob is the file's etag: the hub's word on files that are not pinned."""
        path = self._find(wanted)
        etag = path.name if len(path.name) in (40, 64) and set(path.name) <= set("0123456789abcdef") else None
        return Remote(path.stat().st_size, etag)

    def _find(self, wanted: Wanted) -> Path:
        cached = [place / wanted.path for place in _cached(wanted.at) if wanted.at.commit]
        for place in (*cached, Path(wanted.inside), Path(wanted.path)):
            if (self._folder / place).is_file():
                return within(self._folder, place)
        if not wanted.at.commit:  # of no hub
            raise ModelError(
                f"{self._folder} has no {wanted.inside}", "Name the folder that the model was locked from."
            )
        raise ModelError(
            f"{self._folder} has no {wanted.inside}, nor a Hugging Face cache's {cached[0]}",
            f"It should hold {wanted.at.repo} at revision {wanted.at.commit}.",
        )

    def bring(self, wanted: Wanted, remote: Remote, advance: Callable[[int], None]) -> None:
        source = self._find(wanted)
        wanted.partial.unlink(missing_ok=True)
        if self._link:
            os.link(source, wanted.partial)
            advance(remote.size or 0)
            return
        with open_regular(source) as old, wanted.partial.open("xb") as new:
            while block := old.read(1 << 20):
                advance(new.write(block))
            new.flush()
            os.fsync(new.fileno())


def _cached(at: Revision) -> tuple[Path, Path]:
    """Where a Hugging Face cache has a repository's files at one commit, seen from its `hub` folder or one above."""
    snapshot = Path(f"models--{at.repo.replace('/', '--')}", "snapshots", at.commit)
    return snapshot, "hub" / snapshot
