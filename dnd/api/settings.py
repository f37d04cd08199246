"""Settings of plugins: typed, frozen, and of types that the core knows the meaning of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_origin

import pydantic


class Config(pydantic.BaseModel, extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True):
    """Base of every plugin's settings: typed, frozen, and unknown ones are refused."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    """Settings that change no answer, only where and how fast it is found: left out of the stage's key."""
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Setting of type `ModelName` -> what models.lock may say that the model is for, where that is not the plugin's own
    kind: a scorer's or an encoder's CLIP in a captioner."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Former name of a setting -> its name: run files with the former one are read, with a note."""
    removed: ClassVar[Mapping[str, str]] = {}
    """Former setting -> why it is gone: run files that have it are read without it, with a note."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _todays_names(cls, values: Any) -> Any:
        """Of a setting under both names, the one that was set last."""
        if not isinstance(values, Mapping) or values.keys().isdisjoint({*cls.renamed, *cls.removed}):
            return values
        return {cls.renamed.get(name, name): value for name, value in values.items() if name not in cls.removed}

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Pydantic would take true for 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and _may_be(annotation, int, float) and not _may_be(annotation, bool, Any, value):
            raise ValueError("neither true nor false")
        return value

    @classmethod
    def notes(cls, given: Iterable[str]) -> list[str]:
        """A line on every former setting among the names given."""
        names = list(given)
        renamed = [f"{old} is called {new} now" for old, new in cls.renamed.items() if old in names]
        return renamed + [f"{old} is ignored: {why}" for old, why in cls.removed.items() if old in names]


@dataclass(frozen=True)
class _Marker:
    """What a setting's value means to the core."""

    meaning: str


ModelName = Annotated[str, _Marker("model")]
"""Type of a setting that names a model: the core then verifies it, plans for it and keys results by its digest."""
ProbingFolder = Annotated[Path, _Marker("probing folder")]
"""Type of a setting that is the run's probing folder where the run file does not say another. Of a folder that is both
a generator's and probed, `dnd.api.ImageFolder.halves` says which images the run probes with, and which are left to the
generator."""
ProbingFolders = Annotated[tuple[Path, ...], _Marker("probing folders")]
"""Type of a setting that the core fills: all folders that the run probes with."""


def _folder(path: Path) -> Path:
    path = Path(os.path.abspath(path.expanduser()))
    if not path.is_dir():
        raise ValueError(f"{path} is a file, not a folder" if path.exists() else f"there is no folder {path}")
    return path


ModelFolder = Annotated[Path, pydantic.AfterValidator(_folder), _Marker("model folder")]
"""Type of a setting that is the path of a folder of the user's own, with a model say: it must exist, and the core keys
results by the content of its files."""


def model_names(config: pydantic.BaseModel) -> list[str]:
    """The models that a plugin's settings name: values of type `dnd.api.ModelName`, optional or not."""
    found = [getattr(config, key) for key in model_settings(type(config))]
    return [value for value in found if isinstance(value, str)]


def model_settings(config: type[pydantic.BaseModel]) -> list[str]:
    """The settings of type `dnd.api.ModelName`, optional or not."""
    return _marked(config, "model")


def model_folders(config: pydantic.BaseModel) -> dict[str, Path]:
    """By setting, the folders that a plugin's settings of type `dnd.api.ModelFolder` name, optional or not."""
    found = {key: getattr(config, key) for key in _marked(type(config), "model folder")}
    return {key: path for key, path in found.items() if path is not None}


def probing_folders(config: type[pydantic.BaseModel]) -> list[str]:
    """The settings of type `dnd.api.ProbingFolder`, optional or not."""
    return _marked(config, "probing folder")


def all_probing_folders(config: type[pydantic.BaseModel]) -> list[str]:
    """The settings of type `dnd.api.ProbingFolders`."""
    return _marked(config, "probing folders")


def _marked(config: type[pydantic.BaseModel], meaning: str) -> list[str]:
    marker = _Marker(meaning)
    fields = config.model_fields.items()
    return [key for key, info in fields if marker in info.metadata or _has(info.annotation, marker)]


def _may_be(annotation: object, *kinds: object) -> bool:
    return any(annotation is kind for kind in kinds) or any(_may_be(part, *kinds) for part in get_args(annotation))


def _has(annotation: object, marker: _Marker) -> bool:
    """Whether the marker is at this type, or at a part of it."""
    if get_origin(annotation) is Annotated and marker in get_args(annotation)[1:]:
        return True
    return any(_has(part, marker) for part in get_args(annotation))
