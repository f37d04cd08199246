"""The form of models.lock: strict, versioned TOML, written so that diffs read well."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

import pydantic

from dnd.errors import ModelError
from dnd.store import write_atomic

VERSION = 1
SAFE = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Kinds of file a model may consist of: others could run code, or hide it."""

_HEADER = """\
# Every model that settings can name: where it comes from, its licence, and the files it consists of.
# A file without size and sha256 is not pinned yet: the model is refused until `dnd models lock` has seen it.
"""


class _Strict(pydantic.BaseModel, extra="forbid", frozen=True, strict=True):
    pass


class LockedFile(_Strict):
    path: str
    """Relative to the model's folder, with '/'."""
    size: pydantic.NonNegativeInt | None = None
    """Bytes; None where not known yet."""
    sha256: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @pydantic.field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        pure = PurePosixPath(path)
        if not pure.parts or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path:
            raise ValueError(f"{path!r} is not a path inside the model's folder")
        if not path.endswith(SAFE):
            raise ValueError(f"{path!r} is none of {', '.join(SAFE)}: others could run code, or hide it")
        return path


class LockedModel(_Strict):
    name: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    role: str
    """What it is for: "captioner", "summarizer", "generator", "scorer", "target" or "encoder"."""
    source: Annotated[
        str, pydantic.Field(pattern=r"^(package:[A-Za-z_]\w*(/\w[\w.-]*)*|hub:[\w.-]+/[\w.-]+@[0-9a-f]{40})$")
    ]
    licence: str
    gated: bool
    """Its licence must be accepted at the hub before its files can be had."""
    files: Annotated[tuple[LockedFile, ...], pydantic.Field(strict=False, min_length=1)]

    @property
    def size(self) -> int:
        """Bytes of the files whose size is known."""
        return sum(file.size or 0 for file in self.files)


class _Lock(_Strict):
    version: int
    model: Annotated[tuple[LockedModel, ...], pydantic.Field(strict=False)] = ()


def read_lock(path: Path) -> dict[str, LockedModel]:
    """The models of a lock file by name, in its order; ModelError where it is not one."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    version = tables.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ModelError(f"{path} is of version {version}; this dnd reads up to {VERSION}", "Upgrade dnd.")
    try:
        models = _Lock.model_validate(tables).model
    except pydantic.ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise ModelError(f"{path}: {place}: {fault['msg']}") from error
    by_name = {model.name: model for model in models}
    if version != VERSION or len(by_name) < len(models):
        what = "two models of one name" if version == VERSION else f"version {version} does not exist"
        raise ModelError(f"{path}: {what}")
    return by_name


def write_lock(path: Path, models: Mapping[str, LockedModel]) -> None:
    """Write all of them, in the order given."""
    text = [_HEADER, f"version = {VERSION}\n"]
    for model in models.values():
        text += ["\n[[model]]\n"]
        text += [
            f"{key} = {json.dumps(getattr(model, key))}\n" for key in ("name", "role", "source", "licence", "gated")
        ]
        text += ["files = [\n", *(f"  {{ {_fields(file)} }},\n" for file in model.files), "]\n"]
    write_atomic(path, "".join(text).encode())


def _fields(file: LockedFile) -> str:
    known = {key: value for key, value in file if value is not None}
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in known.items())
