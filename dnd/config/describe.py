"""Settings and run files in words: for `dnd plugins NAME`, `dnd runfiles` and the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pydantic

from dnd.config.tables import RUNFILES, find_runfile
from dnd.errors import UsageError
from dnd.text import json_text

_NAMES = {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "object": "table"}
_SIGNS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


@dataclass(frozen=True)
class Setting:
    """One setting of a backend or of a section."""

    name: str
    type: str
    """ "int ≥ 1", or the values that it may have."""
    default: str
    """As TOML has it; "required", or empty where it is None."""
    meaning: str
    """On one line."""


def settings_of(config: type[pydantic.BaseModel]) -> list[Setting]:
    """Its fields in their order."""
    found = []
    for name, schema in config.model_json_schema().get("properties", {}).items():
        required = config.model_fields[name].is_required()
        default = "required" if required else _value(schema.get("default"))
        found.append(Setting(name, _type(schema), default, one_line(schema.get("description", ""))))
    return found


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return ", ".join(_value(value) for value in schema["enum"])
    if "const" in schema:
        return _value(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    bounds = " ".join(f"{sign} {schema[key]:g}" for key, sign in _SIGNS.items() if key in schema)
    return f"{_NAMES.get(schema.get('type', ''), 'any')} {bounds}".strip()


def _value(value: object) -> str:
    return "" if value is None else json_text(value)


def one_line(text: str | None) -> str:
    """A docstring, or the first paragraph of one, on one line."""
    return " ".join((text or "").strip().split("\n\n")[0].split())


@dataclass(frozen=True)
class RunFile:
    """A run file that an installed package offers."""

    name: str
    distribution: str
    summary: str
    """The first sentence of the comment that it begins with."""


def runfiles() -> list[RunFile]:
    """All that are installed, by name."""
    found = []
    for point in sorted(metadata.entry_points(group=RUNFILES), key=lambda point: point.name):
        try:
            text = find_runfile(point.name).read_text("utf-8")
        except (UsageError, OSError, UnicodeDecodeError) as error:
            text = f"# It cannot be read: {error}."
        found.append(RunFile(point.name, point.dist.name if point.dist else "", _first_sentence(text)))
    return found


def _first_sentence(text: str) -> str:
    lines = re.match(r"(?:#[^\n]*(?:\n|$))*", text)
    assert lines is not None
    comment = " ".join(line.lstrip("# ") for line in lines[0].splitlines())
    return re.split(r"(?<=[.:]) ", comment)[0].rstrip(".:")
