"""The form of an archive of models: an uncompressed tar whose first member lists all others with their digests.

    manifest.json    this list; then, in its order:
    models.lock      the models' entries
    run.toml         the run file they were packed for, if any
    models/NAME/...
    wheels/*.whl     if any

Reading is strict: regular files only, exactly those that the manifest lists, in its order and of its sizes. What is
read is trusted only after its digest.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, Literal, cast

import pydantic

from dnd.errors import ModelError
from dnd.models.lockfile import SAFE, check_distinct, parse_lock

MANIFEST, LOCK, RUNFILE = "manifest.json", "models.lock", "run.toml"
VERSION = 1
_HEAD = 16 << 20
"""Bytes that the manifest, the lock or the run file may have at most."""
BLOCK = 1 << 20


class Entry(pydantic.BaseModel, extra="forbid", frozen=True, strict=True):
    """A member of the archive."""

    path: Annotated[str, pydantic.Field(max_length=600)]
    size: Annotated[int, pydantic.Field(ge=0, lt=2**50)]
    sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(pydantic.BaseModel, extra="forbid", frozen=True, strict=True):
    kind: Literal["dnd models"] = "dnd models"
    version: int = VERSION
    files: Annotated[tuple[Entry, ...], pydantic.Field(strict=False)]

    @pydantic.model_validator(mode="after")
    def _is_sound(self) -> Manifest:
        check_distinct(entry.path for entry in self.files)
        for entry in self.files:
            _check_place(entry)
        return self

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)

    def to_bytes(self) -> bytes:
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _check_place(entry: Entry) -> None:
    """ValueError where a member has no business in an archive of models."""
    pure = PurePosixPath(entry.path)
    parts = pure.parts
    if pure.as_posix() != entry.path or pure.is_absolute() or not entry.path.isprintable():
        raise ValueError(f"{entry.path!r} is not a plain relative path")
    if any(part.startswith(".") or part.endswith((" ", ".")) or set(part) & set('\\:*?"<>|') for part in parts):
        raise ValueError(f"{entry.path!r} is not a plain relative path")
    top = {LOCK: len(parts) == 1, RUNFILE: len(parts) == 1, "models": len(parts) > 2, "wheels": len(parts) == 2}
    if not top.get(parts[0]):
        raise ValueError(f"{entry.path!r} does not belong into an archive of models")
    kinds = {"models": SAFE, "wheels": (".whl",)}.get(parts[0], ())
    if kinds and not entry.path.endswith(kinds):
        raise ValueError(f"{entry.path!r} is none of {', '.join(kinds)}: others could run code, or hide it")
    if parts[0] in (LOCK, RUNFILE) and entry.size > _HEAD:
        raise ValueError(f"{entry.path!r} is too large")


class Archive:
    """An archive that is read: manifest and lock at once, the other members by `members`, once."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        with _refusing(path):
            self._tar = tarfile.open(fileobj=cast(BinaryIO, _Guarded(file)), mode="r:")  # noqa: SIM115, the file is the caller's
            self._headers = iter(self._tar)
            head = next(self._headers, None)
            if head is None or head.name != MANIFEST or head.type != tarfile.REGTYPE or head.size > _HEAD:
                raise _not_ours(path)
            self.manifest = _read_manifest(path, self._read(head))
            self._files = iter(self.manifest.files)
            entry = next(self._files, None)
            if entry is None or entry.path != LOCK:
                raise _not_ours(path)
            text = b"".join(self._checked(entry))
            self.models = parse_lock(text.decode(), f"the lock file in {path}")
        self._compare()

    def _read(self, member: tarfile.TarInfo) -> bytes:
        data = self._tar.extractfile(member)
        return data.read(member.size) if data else b""

    def _compare(self) -> None:
        """ModelError unless the manifest has exactly the files of the archive's lock, all pinned."""
        listed = {entry.path: (entry.size, entry.sha256) for entry in self.manifest.files}
        ours = {path: value for path, value in listed.items() if path.startswith("models/")}
        wanted = {
            f"models/{model.name}/{file.path}": (file.size, file.sha256)
            for model in self.models.values()
            for file in model.files
        }
        if ours != wanted or any(model.packaged for model in self.models.values()):
            odd = sorted({path for path in ours.keys() | wanted.keys() if ours.get(path) != wanted.get(path)})
            raise ModelError(f"{self.path} contradicts itself: manifest and lock differ on {', '.join(odd[:3])}")

    def members(self) -> Iterator[tuple[Entry, Iterator[bytes]]]:
        """Every further member and its bytes, which must be read to their end: only then is their digest checked."""
        with _refusing(self.path):
            for entry in self._files:
                yield entry, self._checked(entry)
            if (extra := next(self._headers, None)) is not None:
                raise ModelError(f"{self.path} is refused: its manifest does not list {extra.name!r}")

    def _checked(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of the next member, which must be this one."""
        with _refusing(self.path):
            member = next(self._headers, None)
            if member is None:
                raise ModelError(f"{self.path} is cut short: {entry.path} is missing", "Copy it again.")
            if member.name != entry.path:
                known = any(member.name == one.path for one in self.manifest.files)
                what = "is out of its place or there twice" if known else "is not in the manifest"
                raise ModelError(f"{self.path} is refused: {member.name!r} {what}")
            if member.type != tarfile.REGTYPE or member.issparse():
                raise ModelError(f"{self.path} is refused: {member.name!r} is a link, a device or no plain file")
            if member.size != entry.size:
                raise ModelError(f"{self.path} is refused: {entry.path} has {member.size} bytes, not {entry.size}")
            digest, left = hashlib.sha256(), entry.size
            data = cast(Any, self._tar.extractfile(member))
            while left:
                block = data.read(min(left, BLOCK))
                if not block:
                    raise ModelError(f"{self.path} is cut short in {entry.path}", "Copy it again.")
                left -= len(block)
                digest.update(block)
                yield block
            if digest.hexdigest() != entry.sha256:
                raise ModelError(
                    f"{self.path} is damaged: {entry.path} has the sha256 {digest.hexdigest()}, not {entry.sha256}",
                    "Copy it again, or pack it anew.",
                )


def _read_manifest(path: Path, data: bytes) -> Manifest:
    try:
        fields = json.loads(data)
        version = fields["version"] if isinstance(fields, dict) else None
    except (ValueError, KeyError, RecursionError):
        raise _not_ours(path) from None
    if isinstance(version, int) and version > VERSION:
        raise ModelError(f"{path} is of version {version}; this dnd reads up to {VERSION}", "Upgrade dnd.")
    try:
        manifest = Manifest.model_validate(fields)
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ModelError(f"{path} is refused: {fault['msg'].removeprefix('Value error, ')}") from error
    if version != VERSION or manifest.to_bytes() != data:
        raise _not_ours(path)
    return manifest


def _not_ours(path: Path) -> ModelError:
    return ModelError(
        f"{path} is not an archive of `dnd models pack`", "It is a plain tar; unpack compressed ones first."
    )


class _refusing:
    """What tarfile and decoding raise on bytes that are no archive -> ModelError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, EOFError):
            raise ModelError(f"cannot read {self._path}: {error.strerror or error}") from error
        if isinstance(error, tarfile.TarError | EOFError | ValueError | OverflowError | RecursionError):
            raise ModelError(f"{self._path} is damaged or no archive: {error}", "Copy it again.") from error


class _Guarded:
    """A file of which nothing reads much at once: tarfile reads extended headers whole, whatever their length."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEAD:
            raise ValueError("a header of the archive is too long")
        return self._file.read(size)

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()


# --- writing -----------------------------------------------------------------------------------------


def write_archive(file: BinaryIO, manifest: Manifest, content: Callable[[Entry], Iterator[bytes]]) -> None:
    """Write all members; the same manifest gives the same bytes. ModelError where content is not what it says."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.copybufsize = BLOCK  # type: ignore[attr-defined]
        data = manifest.to_bytes()
        head = Entry(path=MANIFEST, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for entry, blocks in ((head, iter([data])), *((entry, content(entry)) for entry in manifest.files)):
            member = tarfile.TarInfo(entry.path)
            member.size, member.mode = entry.size, 0o644
            tar.addfile(member, cast(BinaryIO, _Blocks(entry, blocks)))


class _Blocks:
    """Blocks of bytes as a file that tarfile reads from; ModelError at the end where they are not the entry's."""

    def __init__(self, entry: Entry, blocks: Iterator[bytes]) -> None:
        self._entry, self._blocks = entry, blocks
        self._digest, self._left, self._rest = hashlib.sha256(), entry.size, b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (block := next(self._blocks, b"")):
            self._rest += block
        part, self._rest = self._rest[:size], self._rest[size:]
        self._digest.update(part)
        self._left -= len(part)
        if len(part) < size or (not self._left and self._digest.hexdigest() != self._entry.sha256):
            raise ModelError(
                f"{self._entry.path} changed while it was packed", "Run `dnd models verify`, then pack again."
            )
        return part
