"""One plugin on a page: `dnd plugins NAME`."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from inspect import cleandoc
from typing import Any

from dnd.api import model_names
from dnd.config.describe import settings_of
from dnd.plugin.registry import Entry
from dnd.text import plain

_WIDTH = 80
_EXAMPLES = {
    "target": "dnd run --target {name} --layer LAYER --probe FOLDER",
    "probing-set": "dnd run --probe {name}",
    "method": "dnd run --method {name}",
    "encoder": "dnd eval RUN --clip MODEL",
}
_EXAMPLE = "dnd run RUNFILE --{kind} {name}"


def page(entry: Entry) -> str:
    """For people, in lines of at most 80 characters."""
    lines = [f"{entry.kind} {entry.name} ({entry.distribution} {entry.version})"]
    if entry.cls is None:
        return "\n".join([*lines, "", plain(f"{entry.state}: {entry.reason}")])
    lines += ["", *textwrap.wrap(cleandoc(entry.cls.__doc__ or entry.summary), _WIDTH)]
    if entry.cls.requires:
        lines += ["", f"Needs: {', '.join(entry.cls.requires)}"]
    settings = settings_of(entry.cls.Config)
    lines += ["", "Settings:" if settings else "It has no settings."]
    for one in settings:
        default = one.default if one.default in ("required", "") else f"default {one.default}"
        lines.append(f"  {one.name} ({', '.join(part for part in (one.type, default) if part)})")
        lines += textwrap.wrap(one.meaning, _WIDTH - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if models := _models(entry):
        lines += ["", f"Models by default: {', '.join(models)} (`dnd models list`)"]
    return plain("\n".join([*lines, "", f"Example: {_example(entry)}"]))


def record(entry: Entry) -> dict[str, Any]:
    """For scripts."""
    found = {key: getattr(entry, key) for key in ("kind", "name", "distribution", "version", "state", "reason")}
    found["description"] = entry.summary
    if entry.cls is not None:
        found["settings"] = [asdict(one) for one in settings_of(entry.cls.Config)]
        found |= {"requires": list(entry.cls.requires), "models": _models(entry), "example": _example(entry)}
    return found


def _models(entry: Entry) -> list[str]:
    """Named by its settings as they are by default; none where a setting is required."""
    try:
        return model_names(entry.cls.Config()) if entry.cls else []
    except ValueError:
        return []


def _example(entry: Entry) -> str:
    return _EXAMPLES.get(entry.kind, _EXAMPLE).format(kind=entry.kind, name=entry.name)
