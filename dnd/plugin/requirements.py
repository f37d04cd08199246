"""What a plugin needs to work here: packages, and whatever its own check finds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dnd.api import Plugin
from dnd.errors import DndError, PluginError

if TYPE_CHECKING:
    from dnd.plugin.registry import Entry


def check_packages(entries: Iterable[Entry]) -> None:
    """PluginError, with the pip command, where a plugin's `requires` are not installed."""
    from importlib import util

    missing = {}
    for entry in entries:
        absent = [module for module in (entry.cls.requires if entry.cls else ()) if util.find_spec(module) is None]
        if absent:
            missing[entry] = absent
    if missing:
        what = "; ".join(f"{e.kind} {e.name!r} needs {', '.join(absent)}" for e, absent in missing.items())
        commands = dict.fromkeys(_pip(entry, absent) for entry, absent in missing.items())
        raise PluginError(f"packages are missing: {what}", f"Run: {' && '.join(commands)}")


def _pip(entry: Entry, modules: list[str]) -> str:
    """The extra of the plugin's distribution that brings most of the modules, or the modules by name."""
    from importlib import metadata

    found: dict[str, set[str]] = {}
    try:
        requirements = metadata.requires(entry.distribution) or []
    except metadata.PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9._-]+).*;.*extra == ['\"]([^'\"]+)['\"]", requirement)
        if match and _plain(match[1]) in map(_plain, modules):
            found.setdefault(match[2], set()).add(_plain(match[1]))
    if not found:
        return f"pip install {' '.join(modules)}"
    best = max(found, key=lambda extra: (len(found[extra]), extra == entry.name, -len(extra), extra))
    return f"pip install '{entry.distribution}[{best}]'"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def refuse_unfit(plugins: Iterable[Plugin]) -> None:
    """PluginError where plugins know that they cannot work here (`dnd.api.Plugin.check`)."""
    problems = [problem for plugin in plugins for problem in faults_of(plugin)]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"\n  {problem}. {problem.hint}" for problem in problems]
        raise PluginError(f"{len(problems)} things keep this run from working:{''.join(lines)}")


def faults_of(plugin: Plugin) -> list[DndError]:
    """What a plugin finds wrong, as errors; a check that breaks is itself something wrong."""
    try:
        found = list(plugin.check())
    except DndError as error:
        found = [error]
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return [PluginError(f"{plugin.name}: its own check() failed: {what}", "Tell the plugin's author.")]
    return [one if isinstance(one, DndError) else PluginError(f"{plugin.name}: {one}") for one in found]
