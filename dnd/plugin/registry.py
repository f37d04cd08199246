"""Find plugins, set the broken ones apart, make one by kind and name.

A plugin is what an entry point of the group `dnd` names: a module, or an object, with hooks marked
`@dnd.api.hookimpl`. Each is loaded on its own: whatever is wrong with one is listed with its reason and
quoted when it is asked for, and the others work. A plugin may say which interface it was written for with
an attribute `DND_API = 1`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pluggy

from dnd import api
from dnd.errors import DndError, PluginError, UsageError
from dnd.plugin import hookspecs
from dnd.plugin.guard import guard, unchanged
from dnd.text import suggest

GROUP = "dnd"


@dataclass(frozen=True)
class Kind:
    """One kind of thing that plugins offer."""

    hook: str
    interface: type[api.Plugin]
    reserved: frozenset[str]
    """Keys of a run file's table that are not the plugin's: its Config must not have them."""


_OF_LAYERS = ("layout", "call", "at", "output", "tokens", "heads", "sign", "directions", "relu", "sae")
"""Settings of the core, see `dnd.config.run.LayerSettings`."""
KINDS = {
    "captioner": Kind("register_captioners", api.Captioner, frozenset({"backend"})),
    "summarizer": Kind("register_summarizers", api.Summarizer, frozenset({"backend"})),
    "generator": Kind("register_generators", api.Generator, frozenset({"backend"})),
    "scorer": Kind("register_scorers", api.Scorer, frozenset({"backend"})),
    "encoder": Kind("register_encoders", api.Encoder, frozenset({"backend"})),
    "target": Kind("register_targets", api.Target, frozenset({"name", "layers", "units", *_OF_LAYERS})),
    "probing-set": Kind("register_probing_sets", api.ProbingSet, frozenset({"set", "sets"})),
    "method": Kind("register_methods", api.Method, frozenset({"name"})),
}
_KIND_OF_HOOK = {kind.hook: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Entry:
    """Something a plugin offers, or a plugin that could not be asked what it offers."""

    kind: str
    """A key of KINDS; "" where the plugin did not get as far as saying."""
    name: str
    """What users choose it by; for a plugin that could not be loaded, the name of its entry point."""
    cls: type[api.Plugin] | None
    distribution: str
    version: str
    state: str
    """ "ok", "broken" or "clash"."""
    reason: str = ""

    @property
    def summary(self) -> str:
        """What it is, in one sentence: of the class's docstring, or of its module's."""
        if self.cls is None:
            return ""
        module = sys.modules.get(self.cls.__module__)
        text = self.cls.__dict__.get("__doc__") or (module.__doc__ if module else "") or ""
        paragraph = " ".join(text.strip().split("\n\n")[0].split())
        return re.split(r"(?<=[.;]) ", paragraph)[0].rstrip(".;")


class Registry:
    """What is installed, by kind and name."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = tuple(_mark_clashes(list(entries)))

    @classmethod
    def load(cls) -> Registry:
        """Import every plugin that is installed; never raises for what a plugin does."""
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(hookspecs)
        points = sorted(metadata.entry_points(group=GROUP), key=lambda p: (_origin(p), p.name))
        return cls(entry for point in points for entry in _entries(manager, point))

    def names(self, kind: str) -> list[str]:
        """Those of a kind that can be used."""
        return sorted(e.name for e in self.entries if e.kind == kind and e.state == "ok")

    def find(self, kind: str, name: str) -> Entry:
        """The usable entry of that name, whose `cls` is set; PluginError or UsageError says why there is none."""
        for entry in self.entries:
            if (entry.kind, entry.name) == (kind, name) and entry.state == "ok":
                return entry
        for entry in self.entries:
            if entry.name == name and entry.kind in (kind, "") and entry.state != "ok":
                raise PluginError(
                    f"{kind} {name!r} ({entry.distribution} {entry.version}) cannot be used: {entry.reason}",
                    "`dnd plugins` lists what can.",
                )
        hint = suggest(name, self.names(kind))
        broken = sorted({e.distribution for e in self.entries if e.state == "broken"})
        if broken:
            hint += f" Not everything of {', '.join(broken)} could be loaded; `dnd plugins` says why."
        raise UsageError(f"there is no {kind} named {name!r}", hint)

    def named(self, name: str, kind: str | None = None) -> list[Entry]:
        """Every entry of that name, usable or not; UsageError where there is none."""
        found = [entry for entry in self.entries if entry.name == name and kind in (None, entry.kind)]
        if not found:
            known = {entry.name for entry in self.entries}
            raise UsageError(f"there is no plugin named {name!r}", suggest(name, known))
        return found

    def make(self, kind: str, name: str, config: Any, runtime: api.Runtime) -> api.Plugin:
        """An instance, not yet loaded, of the interface that belongs to `kind`."""
        cls = self.find(kind, name).cls
        assert cls is not None
        for variable, value in cls.environment.items():
            os.environ.setdefault(variable, value)
        try:
            return guard(f"the {kind} {name!r}", cls)(config, runtime)
        except Exception as error:
            error.add_note(f"in the {kind} {name!r}, while it was made")
            raise


def _origin(point: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution an entry point belongs to."""
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "")


def _entries(manager: pluggy.PluginManager, point: metadata.EntryPoint) -> Iterator[Entry]:
    """All that one entry point offers; a single broken entry where it cannot be asked."""
    distribution, version = _origin(point)
    try:
        with unchanged(f"the plugin {point.name!r} ({distribution})"), redirect_stdout(sys.stderr):
            plugin = point.load()
            offers = list(_offers(manager, plugin, f"{distribution}:{point.name}"))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # even a SystemExit at import must not take the others down
        yield Entry("", point.name, None, distribution, version, "broken", _explain(error, point))
        return
    for kind, cls in offers:
        fault = fault_of(kind, cls)
        name = cls.name if isinstance(getattr(cls, "name", None), str) else getattr(cls, "__name__", repr(cls))
        usable = isinstance(cls, type) and not fault
        yield Entry(kind, name, cls if usable else None, distribution, version, "broken" if fault else "ok", fault)


def _offers(manager: pluggy.PluginManager, plugin: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(kind, class) for each class that a plugin's hooks return; PluginError for a hook that is not one."""
    wanted = getattr(plugin, "DND_API", api.API_VERSION)
    if wanted != api.API_VERSION:
        raise PluginError(f"it was written for version {wanted} of dnd's plugin interface, this is {api.API_VERSION}")
    if other := manager.get_name(plugin):
        module = getattr(plugin, "__name__", repr(plugin))
        raise PluginError(f"its module {module} is also that of {other.split(':')[0]}: uninstall one or rename it")
    manager.register(plugin, name)
    implementations = [
        (caller, impl)
        for caller in manager.get_hookcallers(plugin) or []
        for impl in caller.get_hookimpls()
        if impl.plugin is plugin
    ]
    if not implementations:
        raise PluginError("it has no hook marked with dnd.api.hookimpl")
    for caller, impl in implementations:
        if not caller.has_spec():
            manager.unregister(plugin)
            raise PluginError(f"{caller.name!r} is not a hook. {suggest(caller.name, _KIND_OF_HOOK)}")
        if impl.wrapper or impl.hookwrapper:
            raise PluginError(f"{caller.name!r} is a hook wrapper, which would change other plugins")
        offered: Any = impl.function()
        if not isinstance(offered, Iterable):
            raise PluginError(f"{caller.name!r} gives {offered!r}, which is no list of classes")
        for cls in offered:
            yield _KIND_OF_HOOK[caller.name], cls


def fault_of(kind: str, cls: Any) -> str:
    """What keeps a class from being used; "" where nothing does."""
    interface = KINDS[kind].interface
    if not isinstance(cls, type) or not issubclass(cls, interface):
        return f"{KINDS[kind].hook} returned {cls!r}, which is not a subclass of dnd.api.{interface.__name__}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return f"{cls.__name__}.name must be a word of letters, digits, '-', '_' and '.', not {name!r}"
    config = getattr(cls, "Config", None)
    if not isinstance(config, type) or not issubclass(config, api.Config):
        return f"{cls.__name__}.Config must be a subclass of dnd.api.Config, not {config!r}"
    taken = sorted(KINDS[kind].reserved & set(config.model_fields))
    if taken:
        return f"{cls.__name__}.Config must not have a setting named {taken[0]!r}: run files use it themselves"
    if inspect.isabstract(cls):
        return f"{cls.__name__} has no {', '.join(sorted(cls.__abstractmethods__))}"
    return ""


def _explain(error: BaseException, point: metadata.EntryPoint) -> str:
    """One line; for a module that is missing, with the extra of the entry point's name if there is one."""
    text = " ".join(str(error).split())
    if isinstance(error, DndError):
        return text
    extras = (point.dist.metadata.get_all("Provides-Extra") or []) if point.dist else []
    if isinstance(error, ModuleNotFoundError) and error.name != point.module and point.name in extras:
        return f"{text}; pip install '{_origin(point)[0]}[{point.name}]'"
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__) + _place(error)


def _place(error: BaseException) -> str:
    """Where in the plugin it came from, for its author: the first line that is neither ours nor of the import."""
    ours = {__file__, importlib.__file__, metadata.__file__}
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename not in ours and not frame.filename.startswith("<"):
            return f" ({Path(frame.filename).name}, line {frame.lineno})"
    return ""


def _mark_clashes(entries: list[Entry]) -> Iterator[Entry]:
    """Entries that share kind and name become clashes whose reason names each other's distribution."""
    for entry in entries:
        rivals = [e for e in entries if e is not entry and (e.kind, e.name) == (entry.kind, entry.name) and e.cls]
        if entry.cls and rivals:
            owners = " and ".join(sorted({entry.distribution, *(rival.distribution for rival in rivals)}))
            yield replace(
                entry, state="clash", reason=f"{owners} both offer a {entry.kind} of this name; uninstall one"
            )
        else:
            yield entry
