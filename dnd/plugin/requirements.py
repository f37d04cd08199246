"""What a plugin needs to work here: packages, and whatever its own check finds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata, util
from typing import TYPE_CHECKING

from dnd.api import Plugin
from dnd.errors import DndError, PluginError, raise_together

if TYPE_CHECKING:
    from dnd.plugin.registry import Entry


def check_packages(entries: Iterable[Entry]) -> None:
    """PluginError, with the pip command, where a plugin's `requires` are not installed, or older than the plugin's
    distribution asks for."""
    unfit = {}
    for entry in entries:
        wanted = {module: _fault(module, entry.distribution) for module in (entry.cls.requires if entry.cls else ())}
        if faults := {module: fault for module, fault in wanted.items() if fault}:
            unfit[entry] = faults
    if unfit:
        what = "; ".join(f"{e.kind} {e.name!r} needs {', '.join(faults.values())}" for e, faults in unfit.items())
        commands = dict.fromkeys(_pip(entry, list(faults)) for entry, faults in unfit.items())
        raise PluginError(f"packages are missing: {what}", f"Run: {' && '.join(commands)}")


def _fault(module: str, distribution: str) -> str:
    """What a plugin of the distribution misses of a module, in words; empty where it is there and new enough."""
    if util.find_spec(module) is None:
        return module
    bounds = [bound for name, bound, _ in _requirements(distribution) if name == _plain(module)]
    oldest = max(bounds, key=_numbers, default="")
    try:
        found = metadata.version(_plain(module))
    except metadata.PackageNotFoundError:  # of another name than its module
        return ""
    return f"{module} {oldest} or later ({found} is installed)" if _numbers(found) < _numbers(oldest) else ""


def _requirements(distribution: str) -> list[tuple[str, str, str]]:
    """(package, its lowest version or "", extra or "") of each of a distribution's requirements."""
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        what, _, condition = line.partition(";")
        if name := re.match(r"[A-Za-z0-9._-]+", what):
            bound = re.search(r">=\s*([0-9.]+)", what)
            extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", condition)
            found.append((_plain(name[0]), bound[1] if bound else "", extra[1] if extra else ""))
    return found


def _numbers(version: str) -> list[int]:
    """[5, 17, 0] of "5.17.0.dev1": what follows a letter does not count."""
    return [int(number) for number in re.split(r"[^0-9.]", version, maxsplit=1)[0].split(".") if number]


def _pip(entry: Entry, modules: list[str]) -> str:
    """The extra of the plugin's distribution that brings most of the modules and least beside them, or the modules by
    name."""
    extras: dict[str, set[str]] = {}
    for name, _, extra in _requirements(entry.distribution):
        if extra:
            extras.setdefault(extra, set()).add(name)
    wanted = set(map(_plain, modules))
    if not any(names & wanted for names in extras.values()):
        return f"pip install {' '.join(modules)}"
    best = max(extras, key=lambda extra: (len(extras[extra] & wanted), extra == entry.name, -len(extras[extra]), extra))
    return f"pip install '{entry.distribution}[{best}]'"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def refuse_unfit(plugins: Iterable[Plugin]) -> None:
    """PluginError where plugins know that they cannot work here (`dnd.api.Plugin.check`)."""
    problems = [problem for plugin in plugins for problem in faults_of(plugin)]
    raise_together(problems, PluginError, "things keep this run from working")


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
