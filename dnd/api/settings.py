"""Settings of plugins: typed, frozen, and of types that the core knows the meaning of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, get_args, get_origin

import pydantic


class Config(pydantic.BaseModel, extra="forbid", frozen=True, protected_namespaces=()):
    """Base of every plugin's settings: typed, frozen, and strangers are refused."""

    unkeyed: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    """Settings that change no answer, only where and how fast it is found: left out of the stage's key."""


@dataclass(frozen=True)
class _NamesModel:
    """Marks a setting whose value is a name in models.lock."""


ModelName = Annotated[str, _NamesModel()]
"""Type of a setting that names a model: the core then verifies it, plans for it and keys results by its digest."""


def model_names(config: pydantic.BaseModel) -> list[str]:
    """The models that a plugin's settings name: values of type `dnd.ModelName`, optional or not."""
    found = []
    for key, info in type(config).model_fields.items():
        value = getattr(config, key)
        marked = any(_is_marker(part) for part in info.metadata) or _names_model(info.annotation)
        if isinstance(value, str) and marked:
            found.append(value)
    return found


def _is_marker(value: object) -> bool:
    return value in get_args(ModelName)[1:]


def _names_model(annotation: object) -> bool:
    """Whether ModelName is this type, or a part of it."""
    if get_origin(annotation) is Annotated and any(_is_marker(part) for part in get_args(annotation)[1:]):
        return True
    return any(_names_model(part) for part in get_args(annotation))
