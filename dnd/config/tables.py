"""The plain parts of reading settings: TOML in, overrides on top, problems in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from dnd.errors import UsageError
from dnd.files import read_text
from dnd.store.toml import parse_toml
from dnd.text import suggest

RUNFILES = "dnd.runfiles"
"""Group of entry points `NAME = "package"`: the run file is <package>/NAME.toml, and nothing is imported."""

CHOOSES = {
    "target": "name",
    "method": "name",
    "captioner": "backend",
    "summarizer": "backend",
    "generator": "backend",
    "scorer": "backend",
}
_OF_THE_CORE = {"target": ("name", "units")}
_OF_THE_SCORER = ("min_score", "calibration")
"""Settings of `labels` that mean nothing for another scorer."""


# --- reading and merging -----------------------------------------------------------------------------


def read_tables(source: str | os.PathLike[str], above: Sequence[Path] = ()) -> dict[str, Any]:
    """The tables of a run file: a path, or the name of one that an installed package offers.

    `base` in it names the run file that it is laid over: a path, seen from its own folder, or a name. `above` are
    the run files that led here.
    """
    path = find_runfile(source)
    tables = _load(path)
    base = tables.pop("base", None)
    if base is None:
        return tables
    if not isinstance(base, str) or not base:
        raise UsageError(f"base: the path or name of a run file is wanted, not {base!r} (in {path})")
    beside = path.parent / base
    chain = [*above, path.resolve()]
    found = beside if beside.is_file() else base
    if find_runfile(found).resolve() in chain:
        raise UsageError(f"{path} is its own base, by way of {base!r}")
    whole = read_tables(found, chain)
    apply_options(whole, flatten(tables))
    return whole


def flatten(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables -> {dotted key: value}, as `apply_options` takes them."""
    found: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": inner for key, inner in flatten(value).items()}
        else:
            found[name] = value
    return found


def _load(path: Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the run file {path}: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error


def find_runfile(source: str | os.PathLike[str]) -> Path:
    path, name = Path(source), os.fspath(source)
    offered = _offered()
    if name in offered and not path.is_file():
        spec = util.find_spec(offered[name].value)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders:
            raise UsageError(f"the run file {name!r} is offered by {offered[name].value!r}, which is not installed")
        return Path(folders[0]) / f"{name}.toml"
    if not path.exists():
        raise UsageError(f"there is no run file {name}", f"Give a path, or a name. {suggest(name, offered)}")
    return path / "run.toml" if path.is_dir() else path


def _offered() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=RUNFILES)}


def is_offered(name: str) -> bool:
    """Whether an installed package has a run file of that name."""
    return name in _offered()


def is_folder(name: str | os.PathLike[str]) -> bool:
    return os.path.isdir(name)  # noqa: PTH112, Path.is_dir raises for a name that is too long


def parse_setting(text: str) -> tuple[str, Any]:
    """ "captioner.num_beams=5" -> ("captioner.num_beams", 5): a TOML value, or else the text itself."""
    key, equals, value = (piece.strip() for piece in text.partition("="))
    if not equals or not all(key.split(".")):
        raise UsageError(f"--set {text}: not of the form section.setting=value", "For example --set images.n=5.")
    try:
        parsed = parse_toml(f"value = {value}")
    except ValueError:
        return key, value
    return key, parsed["value"] if set(parsed) == {"value"} else value


def apply_options(tables: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Write each dotted key into the tables. A section's choice comes first: a new one drops the old one's settings."""
    for section, chooser in CHOOSES.items():
        key = f"{section}.{chooser}"
        table = tables.get(section)
        if key in options and isinstance(table, dict) and table.get(chooser) != options[key]:
            kept = _OF_THE_CORE.get(section, ())
            tables[section] = {k: v for k, v in table.items() if k in kept}
            if section == "scorer" and isinstance(tables.get("labels"), dict):
                tables["labels"] = {k: v for k, v in tables["labels"].items() if k not in _OF_THE_SCORER}
    target, layers = tables.get("target"), options.get("target.layers")
    if layers and isinstance(target, dict) and _listed(target.get("layers")) != _listed(layers):
        target.pop("units", None)  # they were chosen in other layers
    sets = [options[key] for key in ("probing.set", "probing.sets") if key in options]
    if sets and isinstance(tables.get("probing"), dict):
        before = tables["probing"].pop("set", None), tables["probing"].pop("sets", None)
        if not any(one in before or [one] in before or (isinstance(one, list) and one[0] in before) for one in sets):
            tables["probing"] = {}
    for key, value in options.items():
        *path, last = key.split(".")
        table = tables
        for name in path:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UsageError(f"--set {key}: {name} is a setting, not a section")
        table.pop(last, None)
        table[last] = value  # at the end: of a setting under its former and its present name, the last one counts


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else value
