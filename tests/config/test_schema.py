"""The schema of run files knows every setting of every installed one, and refuses what is none."""

from __future__ import annotations

from typing import Any

import pytest

from dnd.config.describe import runfiles
from dnd.config.schema import run_schema
from dnd.config.tables import read_tables
from dnd.plugin.registry import Registry

SCHEMA = run_schema(Registry.load())


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def keys(section: str, table: dict[str, Any]) -> dict[str, Any]:
    """The settings that the schema offers in a section, given what the table chooses."""
    schema = resolved(SCHEMA["properties"][section])
    found = dict(schema["properties"])
    for rule in schema.get("allOf", []):
        ((chooser, wanted),) = rule["if"]["properties"].items()
        if table.get(chooser) == wanted["const"]:
            found |= resolved(rule["then"])["properties"]
    return found


@pytest.mark.parametrize("name", [one.name for one in runfiles()])
def test_every_setting_of_a_run_file_is_known(name: str) -> None:
    for section, table in read_tables(name).items():
        assert section in SCHEMA["properties"]
        if isinstance(table, dict):
            assert set(table) <= set(keys(section, table)), section


def test_what_is_chosen_decides_which_settings_there_are() -> None:
    beams = keys("captioner", {"backend": "blip2"})["num_beams"]
    assert (beams["type"], beams["default"]) == ("integer", 1)
    assert "beam search" in beams["description"]
    assert "num_beams" not in keys("captioner", {"backend": "tagger"})
    assert "blip2" in SCHEMA["properties"]["captioner"]["properties"]["backend"]["enum"]
    assert resolved(SCHEMA["properties"]["images"])["additionalProperties"] is False
    assert "additionalProperties" not in resolved({"$ref": "#/$defs/Blip2Config"}), "`backend` stands beside them"
    assert {"name", "layers", "units", "call", "layout"} <= set(keys("target", {"name": "my:net"}))
    assert SCHEMA["properties"]["seed"]["type"] == "integer"
    assert "default" in SCHEMA["properties"]["base"]["examples"]
