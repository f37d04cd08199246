"""The form of models.lock: strict, versioned TOML, written so that diffs read well."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Self

import pydantic

from dnd.errors import ModelError, first_fault
from dnd.files import read_text
from dnd.store.files import write_atomic
from dnd.store.toml import parse_toml
from dnd.text import json_text

VERSION = 1
ANY_ROLE = "model"
SAFE = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Kinds of file a model may consist of: others could run code, or hide it."""

_HEADER = """\
# Every model that settings can name: where it comes from, its licence, and the files it consists of.
# A file without size and sha256 is not pinned yet: `dnd models fetch` completes that, and refuses what differs.
"""


class _Strict(pydantic.BaseModel, extra="forbid", frozen=True, strict=True):
    pass


def _inside(path: str) -> str:
    """The path, if it is a plain relative one with '/'; else ValueError."""
    pure = PurePosixPath(path)
    plain = pure.as_posix() == path and path.isprintable() and not any(c in path for c in '\\:*?"<>|')
    if not plain or pure.is_absolute() or any(part.startswith(".") or part.endswith((" ", ".")) for part in pure.parts):
        raise ValueError(f"{path!r} is not a path inside the model's folder")
    return path


Revised = Annotated[str, pydantic.Field(pattern=r"^hub:[\w.-]+/[\w.-]+@[0-9a-f]{40}$")]
"""A repository of a hub at one commit."""


class LockedFile(_Strict):
    path: Annotated[str, pydantic.Field(max_length=400), pydantic.AfterValidator(_inside)]
    """Relative to the repository, or the folder, that it comes from, with '/'."""
    size: Annotated[int, pydantic.Field(ge=0, lt=2**50)] | None = None
    """Bytes; None where not known yet."""
    sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @pydantic.field_validator("path")
    @classmethod
    def _is_safe(cls, path: str) -> str:
        if not path.endswith(SAFE):
            raise ValueError(f"{path!r} is none of {', '.join(SAFE)}: others could run code, or hide it")
        return path

    @property
    def pinned(self) -> bool:
        return self.size is not None and self.sha256 is not None


class LockedPart(_Strict):
    """Files of another repository that belong into the same folder, such as the repaired part of a pipeline."""

    source: Revised
    under: Annotated[str, pydantic.Field(max_length=200), pydantic.AfterValidator(_inside)]
    """The folder inside the model's that the repository's files go to."""
    licence: str
    gated: bool
    files: Annotated[tuple[LockedFile, ...], pydantic.Field(strict=False, min_length=1)]


class LockedModel(_Strict):
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    role: str
    """What it is for, one of `dnd.models.ROLES`; "model" where that was not said."""
    source: Annotated[
        str, pydantic.Field(pattern=r"^(local|package:[A-Za-z_]\w*(/\w[\w.-]*)*|hub:[\w.-]+/[\w.-]+@[0-9a-f]{40})$")
    ]
    """ "local" for a model of the user's own, which the store has the only copy of."""
    licence: str
    gated: bool
    """Its licence must be accepted at the hub before its files can be had."""
    own: Annotated[tuple[LockedFile, ...], pydantic.Field(alias="files", strict=False, min_length=1)]
    """Those of `source`; `files` has those of the parts too."""
    part: Annotated[tuple[LockedPart, ...], pydantic.Field(strict=False)] = ()

    @pydantic.field_validator("name")
    @classmethod
    def _is_free(cls, name: str) -> str:
        if name.casefold() == "models.lock":
            raise ValueError("the store has a file of that name")
        return name

    @pydantic.model_validator(mode="after")
    def _one_place_each(self) -> Self:
        check_distinct(file.path for file in self.files)
        if self.part and not self.source.startswith("hub:"):
            raise ValueError("only a hub's model has parts")
        if self.local and self.unpinned:
            raise ValueError("a model of one's own has a size and sha256 for every file")
        return self

    @property
    def packaged(self) -> bool:
        """Package data; else its files are in the store."""
        return self.source.startswith("package:")

    @property
    def local(self) -> bool:
        """A model of the user's own; else its files come from a hub or a package."""
        return self.source == "local"

    @property
    def files(self) -> tuple[LockedFile, ...]:
        """Every file of the model, at its path in the model's folder."""
        moved = (
            file.model_copy(update={"path": f"{part.under}/{file.path}"}) for part in self.part for file in part.files
        )
        return (*self.own, *moved)

    @property
    def size(self) -> int:
        """Bytes of the files whose size is known."""
        return sum(file.size or 0 for file in self.files)

    @property
    def megabytes(self) -> str:
        """`size` for people, with a + where a file's size is not known; ? where next to nothing is."""
        if self.size < 50_000 and any(file.size is None for file in self.files):
            return "?"
        size, more = self.size / 1e6, "+" if any(file.size is None for file in self.files) else ""
        return f"{size:,.0f}{more}" if size >= 100 else f"{size:.1f}{more}"

    @property
    def unpinned(self) -> list[str]:
        """Files whose size or digest is not known."""
        return [file.path for file in self.files if not file.pinned]

    @property
    def licences(self) -> str:
        """Of the model and its parts: "openrail++, mit"."""
        return ", ".join(dict.fromkeys((self.licence, *(part.licence for part in self.part))))

    def with_pins(self, found: Mapping[str, LockedFile]) -> LockedModel:
        """The same with the sizes and digests of `found`, by path in the model's folder."""

        def pin(files: Iterable[LockedFile], under: str = "") -> tuple[LockedFile, ...]:
            known = ((file, found.get(under + file.path, file)) for file in files)
            return tuple(file.model_copy(update={"size": new.size, "sha256": new.sha256}) for file, new in known)

        parts = tuple(part.model_copy(update={"files": pin(part.files, f"{part.under}/")}) for part in self.part)
        return self.model_copy(update={"own": pin(self.own), "part": parts})

    def same_files(self, other: LockedModel) -> bool:
        """Whether both come from the same places and no pin of one contradicts the other."""
        ours, theirs = ({file.path: file for file in model.files} for model in (self, other))
        return (
            [self.source, *((p.source, p.under) for p in self.part)]
            == [other.source, *((p.source, p.under) for p in other.part)]
            and ours.keys() == theirs.keys()
            and all(
                None in (a, b) or a == b
                for path, file in ours.items()
                for a, b in ((file.size, theirs[path].size), (file.sha256, theirs[path].sha256))
            )
        )


def check_distinct(paths: Iterable[str]) -> None:
    """ValueError where two paths would be one file on some system, or one is a folder of another."""
    seen: dict[tuple[str, ...], str] = {}
    for path in paths:
        key = tuple(unicodedata.normalize("NFKC", part).casefold() for part in PurePosixPath(path).parts)
        if key in seen:
            raise ValueError(f"{seen[key]!r} and {path!r} are one file, on some systems at least")
        seen[key] = path
    for key, path in seen.items():
        if clash := next((seen[key[:n]] for n in range(1, len(key)) if key[:n] in seen), None):
            raise ValueError(f"{clash!r} is a file and the folder of {path!r}")


class _Lock(_Strict):
    version: int
    model: Annotated[tuple[LockedModel, ...], pydantic.Field(strict=False)] = ()


def read_lock(path: Path) -> dict[str, LockedModel]:
    """The models of a lock file by name, in its order; ModelError where it is not one."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return parse_lock(text, str(path))


def parse_lock(text: str, where: str) -> dict[str, LockedModel]:
    """As `read_lock`, of a text; `where` is what messages call it."""
    try:
        tables = parse_toml(text)
    except ValueError as error:
        raise ModelError(f"cannot read {where}: {error}") from error
    version = tables.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ModelError(f"{where} is of version {version}; this dnd reads up to {VERSION}", "Upgrade dnd.")
    try:
        models = _Lock.model_validate(tables).model
        if version != VERSION:
            raise ModelError(f"{where}: version {version} does not exist")
        check_distinct(model.name for model in models)
    except pydantic.ValidationError as error:
        raise ModelError(f"{where}: {first_fault(error)}") from error
    except ValueError as error:
        raise ModelError(f"{where}: two models of one name: {error}") from error
    return {model.name: model for model in models}


def write_lock(path: Path, models: Mapping[str, LockedModel]) -> None:
    """Write all of them, in the order given."""
    write_atomic(path, lock_text(models.values()).encode())


def lock_text(models: Iterable[LockedModel]) -> str:
    """What a lock file of these models says."""
    text = [_HEADER, f"version = {VERSION}\n"]
    for model in models:
        text += ["\n[[model]]\n", *_lines(model, ("name", "role", "source", "licence", "gated"))]
        for part in model.part:
            text += ["\n[[model.part]]\n", *_lines(part, ("source", "under", "licence", "gated"))]
    return "".join(text)


def _lines(table: LockedModel | LockedPart, keys: Iterable[str]) -> list[str]:
    fields = [f"{key} = {_toml(getattr(table, key))}\n" for key in keys]
    files = [f"  {{ {_fields(file)} }},\n" for file in (table.own if isinstance(table, LockedModel) else table.files)]
    return [*fields, "files = [\n", *files, "]\n"]


def _fields(file: LockedFile) -> str:
    return ", ".join(f"{key} = {_toml(value)}" for key, value in file if value is not None)


def _toml(value: str | int) -> str:
    """JSON's form of a text, number or truth value is TOML's too, once control characters are codes."""
    return json_text(value)
