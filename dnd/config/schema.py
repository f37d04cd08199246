"""The JSON schema of a run file, for editors: what `dnd config --schema` prints, of the plugins that are installed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from dnd.config.describe import runfiles
from dnd.config.run import BACKENDS, CORE_SECTIONS, OWN_METHODS, General, LayerSettings
from dnd.config.tables import CHOOSES
from dnd.plugin.registry import Entry, Registry

_TEXT = {"type": "string"}
_TEXTS = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_OWN: dict[str, dict[str, Any]] = {
    "target": {
        "name": {"description": "A plugin's target, or module:function -> (module, preprocess)."},
        "layers": {**_TEXTS, "description": "As named_modules() calls them."},
        "units": {"description": 'Of each layer: "all", "shown", "0-9,12", or a list.'},
    },
    "probing": {"set": _TEXT, "sets": _TEXTS},
}
"""Settings of a section that no plugin has."""


def run_schema(registry: Registry) -> dict[str, Any]:
    """Draft 2020-12. A backend's settings are offered once it is chosen; a target's or a set's name may be the user's
    own."""
    usable = [entry for entry in registry.entries if entry.state == "ok" and entry.cls is not None]
    chosen = dict.fromkeys(entry.cls.Config for entry in usable if entry.cls)
    core = (*CORE_SECTIONS.values(), *OWN_METHODS.values(), General, LayerSettings)
    models = [(model, "validation") for model in dict.fromkeys((*chosen, *core))]
    names, shared = models_json_schema(models, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    refs = {model: reference for (model, _), reference in names.items()}
    sections: dict[str, Any] = {section: refs[cls] for section, cls in CORE_SECTIONS.items()}
    for section in ("target", "probing", "method", *BACKENDS):
        kind = "probing-set" if section == "probing" else section
        sections[section] = _section(section, [entry for entry in usable if entry.kind == kind], refs)
    definitions = shared["$defs"]
    for model in (*chosen, *OWN_METHODS.values()):
        _definition(definitions, refs[model]).pop("additionalProperties", None)  # such as `backend` itself
    sections["target"]["properties"] |= _definition(definitions, refs[LayerSettings])["properties"]
    general = _definition(definitions, refs[General])
    base = {
        **_TEXT,
        "description": "The run file that this is laid over.",
        "examples": [one.name for one in runfiles()],
    }
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": "A run file of dnd",
        "type": "object",
        "properties": {"base": base, **general["properties"], **sections},
        "additionalProperties": False,
        "$defs": definitions,
    }


def _definition(definitions: dict[str, Any], reference: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = definitions[reference["$ref"].rpartition("/")[2]]
    return found


def _section(section: str, entries: Iterable[Entry], refs: dict[Any, Any]) -> dict[str, Any]:
    """Its choice, and the settings of what is chosen."""
    chooser = CHOOSES.get(section, "set")
    known = [entry.name for entry in entries] + ([*OWN_METHODS] if section == "method" else [])
    free = section in ("target", "probing")
    choice = {**_TEXT, "examples": known} if free else {"enum": known}
    own = {chooser: {**choice, **_OWN.get(section, {}).get(chooser, {})}}
    properties = {**_OWN.get(section, {}), **own}
    settings = [
        {"if": {"properties": {chooser: {"const": entry.name}}, "required": [chooser]}, "then": refs[entry.cls.Config]}
        for entry in entries
        if entry.cls
    ]
    if section == "method":
        settings += [
            {"if": {"properties": {chooser: {"const": name}}, "required": [chooser]}, "then": refs[config]}
            for name, config in OWN_METHODS.items()
        ]
    return {"type": "object", "properties": properties, "allOf": settings}
