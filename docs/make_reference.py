"""Write docs/reference.md: the commands from click, the settings from pydantic, the models from models.lock.

    python docs/make_reference.py

Run it after a change to an option, a setting, a run file or models.lock; `tests/test_docs.py` fails until then.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pydantic

from dnd.cli.main import cli
from dnd.config.describe import one_line, runfiles, settings_of
from dnd.config.run import CORE_SECTIONS, General, LayerSettings, Refine
from dnd.plugin.registry import KINDS, Entry, Registry

PAGE = Path(__file__).parent / "reference.md"
LOCK = Path(__file__).parent.parent / "models.lock"
DISTRIBUTION = "dnd-describe"
SECTIONS: Mapping[str, type[pydantic.BaseModel]] = {
    "Top level": General,
    "[target]": LayerSettings,
    **{f"[{section}]": model for section, model in CORE_SECTIONS.items()},
    "[method] refine": Refine,
}
TITLES = {"probing-set": "probing set"}
HEAD = """\
# Reference

<!-- Written by docs/make_reference.py. Do not edit. -->

Every command, setting, installed run file and pinned model. What they are for is explained in the other pages;
the terms are in the [glossary](method.md#glossary).

- [Commands](#commands)
- [Run file](#run-file)
- [Backends, targets and probing sets](#backends-targets-and-probing-sets)
- [Installed run files](#installed-run-files)
- [Models](#models)
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, _commands(), _run_file(), _plugins(), _run_files(), _models()]
    return "\n".join(parts)


def _commands() -> str:
    blocks = [
        "## Commands",
        "",
        "Exit status: 0 done; 1 an error that you can mend; 2 wrong usage; 3 some units failed.",
    ]
    options: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "terminal_width": 100}
    for command, context in _walk(cli, click.Context(cli, info_name="dnd", **options)):
        blocks += ["", f"### {context.command_path}", "", "```text", command.get_help(context), "```"]
    return "\n".join([*blocks, ""])


def _walk(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _walk(child, click.Context(child, info_name=name, parent=context, terminal_width=100))


def _run_file() -> str:
    blocks = [
        "## Run file",
        "",
        "The other keys of `[target]`, and those of `[probing]`: [your network and images](your-network.md).",
    ]
    for title, model in SECTIONS.items():
        blocks += ["", f"### {title}", "", *_settings(model)]
    return "\n".join([*blocks, ""])


def _plugins() -> str:
    blocks = ["## Backends, targets and probing sets"]
    entries = [entry for entry in Registry.load().entries if entry.distribution == DISTRIBUTION]
    for kind in KINDS:
        for entry in sorted((e for e in entries if e.kind == kind), key=lambda e: e.name):
            blocks += ["", f"### {TITLES.get(kind, kind)} `{entry.name}`", "", *_plugin(entry)]
    return "\n".join([*blocks, ""])


def _plugin(entry: Entry) -> list[str]:
    if entry.cls is None:
        raise SystemExit(f"{entry.kind} {entry.name} cannot be loaded: {entry.reason}")
    module = sys.modules[entry.cls.__module__].__doc__ or ""
    lines = [one_line(entry.cls.__doc__ or module)]
    return [*lines, "", *_settings(entry.cls.Config)] if entry.cls.Config.model_fields else lines


def _settings(model: type[pydantic.BaseModel]) -> list[str]:
    """A table of a model's fields."""
    rows = [(f"`{one.name}`", _code(one.type), _code(one.default), one.meaning) for one in settings_of(model)]
    return _table(("setting", "type", "default", "meaning"), rows)


def _code(text: str) -> str:
    """JSON values as code; words as they are."""
    return re.sub(r'"[^"]*"|^(?:-?[\d.e-]+|true|false|\[.*\]|\{.*\})$', lambda found: f"`{found[0]}`", text)


def _run_files() -> str:
    rows = [(f"`{one.name}`", one.summary) for one in runfiles() if one.distribution == DISTRIBUTION]
    head = ["## Installed run files", "", '`dnd run NAME` uses one; `base = "NAME"` in a run file starts from one.', ""]
    return "\n".join([*head, *_table(("name", "what it is"), rows), ""])


def _models() -> str:
    rows = []
    for model in tomllib.loads(LOCK.read_text("utf-8"))["model"]:
        parts = [model, *model.get("part", [])]
        files = [file for part in parts for file in part["files"]]
        size = f"{sum(file.get('size', 0) for file in files) / 1e6:,.1f}"
        if not all("size" in file for file in files):
            size = "unknown" if size == "0.0" else f"{size}+"
        licences = dict.fromkeys(part["licence"] + (" (gated)" if part["gated"] else "") for part in parts)
        rows.append((f"`{model['name']}`", model["role"], size, ", ".join(licences)))
    head = ["## Models", "", "`+`: some sizes are not known before the first fetch.", ""]
    return "\n".join([*head, *_table(("name", "role", "MB", "licence"), rows), ""])


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
