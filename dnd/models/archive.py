"""The form of an archive of models: a plain tar in a fixed order, whose first member pins the files of all models.

    models.lock          the models' entries, every file with its size and sha256
    models/NAME/FILE     in the order of models.lock, the files of a model by path
    run.toml             the run file that the models were packed for, if any
    wheels/*.whl         if any

So every header up to run.toml is known from models.lock: it is compared, not parsed. The headers of the rest must be
exactly those that `write_archive` writes. Links, devices, other names, extended headers and other sizes never match.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dnd.errors import ModelError
from dnd.models.lockfile import LockedModel, parse_lock

LOCK, RUNFILE, WHEELS = "models.lock", "run.toml", "wheels/"
BLOCK = 1 << 20
_HEAD = 4 << 20
"""Bytes that models.lock or the run file may have at most."""


@dataclass(frozen=True)
class Entry:
    """A member of the archive."""

    path: str
    size: int
    sha256: str | None = None
    """None for what models.lock does not pin: itself, the run file and wheels."""

    def header(self) -> bytes:
        """A multiple of 512 bytes; the extended form only where the plain one has no room."""
        member = tarfile.TarInfo(self.path)
        member.size, member.mode = self.size, 0o644
        try:
            return member.tobuf(tarfile.USTAR_FORMAT, "utf-8")
        except ValueError:
            return member.tobuf(tarfile.PAX_FORMAT, "utf-8")

    @property
    def padding(self) -> int:
        """Zero bytes after the content."""
        return -self.size % tarfile.BLOCKSIZE


def model_entries(models: Iterable[LockedModel]) -> Iterator[tuple[LockedModel, Entry, str]]:
    """Every file of the models in the archive's order: (model, member, path in the model's folder)."""
    for model in models:
        for file in sorted(model.files, key=lambda file: file.path):
            yield model, Entry(f"models/{model.name}/{file.path}", file.size or 0, file.sha256), file.path


class Archive:
    """An archive that is read once from its start to its end: models.lock at once, the rest by `members`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file, self._position, self._digest = path, file, 0, hashlib.sha256()
        self.size = path.stat().st_size
        head = self._parsed(self._read(tarfile.BLOCKSIZE))
        if head is None or head.path != LOCK or head.size > _HEAD:
            raise self._not_ours()
        try:
            text = b"".join(self._content(head)).decode()
        except UnicodeDecodeError:
            raise self._not_ours() from None
        self.models = parse_lock(text, f"the lock file in {path}")
        if odd := [model.name for model in self.models.values() if model.packaged or model.unpinned]:
            raise ModelError(f"{path} is refused: its models.lock does not pin all files of {', '.join(odd[:3])}")

    @property
    def sha256(self) -> str:
        """Of the whole file, once `members` has come to its end."""
        return self._digest.hexdigest()

    def members(self) -> Iterator[tuple[Entry, Iterator[bytes]]]:
        """Every further member and its bytes, which must be read to their end: only then is their digest checked."""
        for _, entry, _ in model_entries(self.models.values()):
            wanted = entry.header()
            if (found := self._read(len(wanted))) != wanted:
                raise self._unlisted(found, f"its models.lock lists {entry.path}, a file of {entry.size} bytes")
            yield entry, self._content(entry)
        last = ""
        while any(block := self._read(tarfile.BLOCKSIZE)):
            extra = self._parsed(block)
            if extra is None or not _is_extra(extra, last):
                raise self._unlisted(block, "after the models there may be a run file and wheels, once each")
            last = extra.path
            yield extra, self._content(extra)
        if any(self._read(-self._position % tarfile.RECORDSIZE)) or self._file.read(1):
            raise ModelError(f"{self.path} is refused: something follows its end")

    def _read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error.strerror or error}") from error
        self._digest.update(data)
        self._position += len(data)
        if len(data) < size:
            raise ModelError(f"{self.path} is cut short", "Copy it again.") if self._position else self._not_ours()
        return data

    def _content(self, entry: Entry) -> Iterator[bytes]:
        digest, left = hashlib.sha256(), entry.size
        while left:
            block = self._read(min(left, BLOCK))
            left -= len(block)
            digest.update(block)
            yield block
        if any(self._read(entry.padding)):
            raise ModelError(f"{self.path} is damaged after {entry.path}", "Copy it again.")
        if entry.sha256 not in (None, digest.hexdigest()):
            raise ModelError(
                f"{self.path} is damaged: {entry.path} has the sha256 {digest.hexdigest()}, not {entry.sha256}",
                "Copy it again, or pack it anew.",
            )

    @staticmethod
    def _parsed(block: bytes) -> Entry | None:
        """The member of a plain header that is exactly ours; None for any other."""
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            entry = Entry(member.name, member.size)
            return entry if entry.header() == block else None
        except (tarfile.HeaderError, ValueError):
            return None

    def _unlisted(self, header: bytes, instead: str) -> ModelError:
        try:
            name = repr(tarfile.TarInfo.frombuf(header[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").name)
        except (tarfile.HeaderError, ValueError):
            name = "something else"
        return ModelError(f"{self.path} is refused: it has {name} where {instead}", "Copy it again, or pack it anew.")

    def _not_ours(self) -> ModelError:
        return ModelError(
            f"{self.path} is not an archive of this version's `dnd models pack`",
            "It is a plain tar: unpack compressed ones first, and pack those of earlier versions anew.",
        )


def is_wheel(entry: Entry) -> bool:
    """Whether the member is a wheel that an archive can have."""
    name = entry.path.removeprefix(WHEELS)
    plain = name.isprintable() and not name.startswith(".") and not set(name) & set('/\\:*?"<>|')
    return entry.path == WHEELS + name and name.endswith(".whl") and plain and len(entry.header()) == tarfile.BLOCKSIZE


def _is_extra(entry: Entry, last: str) -> bool:
    """Whether the member may follow the models and `last`: the run file first, then wheels in order."""
    if entry.path == RUNFILE:
        return not last and entry.size <= _HEAD
    return is_wheel(entry) and (not last.startswith(WHEELS) or last < entry.path)


def write_archive(file: BinaryIO, members: Iterable[tuple[Entry, Iterator[bytes]]]) -> str:
    """Write all members; the same give the same bytes. Returns the sha256 of the whole.

    ModelError where the content of a member is not what its entry says.
    """
    whole, position = hashlib.sha256(), 0

    def write(data: bytes) -> None:
        nonlocal position
        position += file.write(data)
        whole.update(data)

    for entry, blocks in members:
        write(entry.header())
        digest, left = hashlib.sha256(), entry.size
        for block in blocks:
            digest.update(block)
            left -= len(block)
            if left < 0:
                break
            write(block)
        if left or entry.sha256 not in (None, digest.hexdigest()):
            raise ModelError(f"{entry.path} changed while it was packed", "Run `dnd models verify`, then pack again.")
        write(bytes(entry.padding))
    write(bytes(tarfile.BLOCKSIZE))
    write(bytes(-position % tarfile.RECORDSIZE))
    return whole.hexdigest()
