"""The models that a run file names, before its target and its images are at hand."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dnd.config.read import build_run
from dnd.config.tables import apply_options, parse_setting, read_tables
from dnd.plugin.registry import Registry


def read_needs(source: str, settings: Sequence[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """The tables of a run file, a path or the name of an installed one, and the models it names, each once.

    The target and the probing set may be missing: a run on another machine may add them. UsageError otherwise,
    as `dnd run` has it.
    """
    tables = read_tables(source)
    apply_options(tables, dict(parse_setting(text) for text in settings))
    with tempfile.TemporaryDirectory() as empty:
        filled, anyone = _filled(tables, empty)
        run = build_run(filled, Registry.load(), live_target=anyone)
    return tables, list(run.models())


def _filled(tables: dict[str, Any], folder: str) -> tuple[dict[str, Any], bool]:
    """The tables with stand-ins for a target that is not named, its layers, and folders of images that are not here."""
    target, probing = tables.get("target", {}), tables.get("probing", {})
    anyone = isinstance(target, dict) and "name" not in target
    if isinstance(target, dict):
        target = {"layers": ["any"], **target, **({"name": "any"} if anyone else {})}
    if isinstance(probing, dict):
        one, several = probing.get("set"), probing.get("sets")
        names = several if isinstance(several, list) else [one] if one else []
        named = [name if "/" not in str(name) or Path(str(name)).is_dir() else folder for name in names] or [folder]
        probing = {key: value for key, value in probing.items() if key != "set"} | {"sets": named}
    return {**tables, "target": target, "probing": probing}, anyone


def packed_runfile(source: str, settings: Sequence[str] = ()) -> bytes:
    """A run file as it goes into an archive: a file of the user's as it is, unless settings change it."""
    import tomli_w

    path = Path(source)
    if not settings and path.exists():
        return (path / "run.toml" if path.is_dir() else path).read_bytes()
    return tomli_w.dumps(read_needs(source, settings)[0]).encode()
