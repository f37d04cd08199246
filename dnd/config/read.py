"""A run file and what the command line adds to it -> one frozen `Run`, checked before any work.

Tables are merged first and validated once, so that every problem is reported together. What plugins
define is validated by their own `Config`; `Run.to_toml` gives a run file that reads back to an equal Run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dnd.api import Config, Method, Plugin, Scorer, Summarizer, all_probing_folders, probing_folders
from dnd.config.calibration import CalibrationFile
from dnd.config.problems import Problems
from dnd.config.run import (
    BACKENDS,
    CORE_SECTIONS,
    HALF,
    OWN_METHOD,
    OWN_METHODS,
    UNUSED,
    Choice,
    General,
    Labels,
    LayerSettings,
    Run,
    TargetChoice,
)
from dnd.config.tables import flatten, is_folder
from dnd.config.units import parse_units, unit_text
from dnd.errors import DndError, UsageError
from dnd.plugin.registry import Registry
from dnd.text import is_unicode, suggest

_PROBING = "{probing}"
"""How run files of earlier versions name the probing folder in a setting that takes it when left out."""


def build_run(tables: Mapping[str, Any], registry: Registry, *, live_target: bool = False) -> Run:
    """Validate the tables of a run file; UsageError or PluginError tells of every problem found.

    With `live_target` the module is at hand already: the target's `name` is free text and not looked up.
    """
    run, problems = _build(tables, registry, live_target)
    problems.raise_if_any()
    return run


def _build(tables: Mapping[str, Any], registry: Registry, live_target: bool) -> tuple[Run, Problems]:
    """A choice that could not be read is None, a section of the core its defaults."""
    problems = Problems()
    sections = {"target", "probing", "method", *BACKENDS, *CORE_SECTIONS}
    at_hand = {section: problems.table(section, tables.get(section, {})) for section in sections}
    problems.raise_if_any()
    rest = {key: value for key, value in tables.items() if key not in sections}
    reader = _Reader(registry, problems, at_hand)
    parts: dict[str, Any] = {
        "target": reader.target(live_target),
        "probing": reader.probing(),
        "method": reader.method(),
        **{section: reader.backend(section) for section in BACKENDS},
        **{
            section: problems.check(section, cls, reader.tables[section]) or cls()
            for section, cls in CORE_SECTIONS.items()
        },
        "general": problems.check("", General, rest, also=sections) or General(),
    }
    parts["probing"] = _halved(parts["probing"], parts["generator"])
    _check_calibration(parts["labels"], parts["scorer"], problems)
    if parts["verify"].n and parts["generator"] and parts["generator"].name == UNUSED:
        words = "verify.n: the run has no generator for the images that labels are verified on"
        problems.add(words, "`dnd verify RUN --generator RUNFILE` takes that of another run file.")
    run = Run(**parts)
    for key, value in flatten({} if problems.found else run.to_dict()).items():
        if not is_unicode(json.dumps(value, ensure_ascii=False, default=str)):
            problems.add(f"{key}: {value!r} is no UTF-8, which a run file is", "Rename the file or folder.")
    return run, problems


def _halved(probing: Sequence[Choice], generator: Choice | None) -> tuple[Choice, ...]:
    """Of a folder whose images the generator shows, half are probed with: what suggests a concept does not test it."""
    config = generator.config if generator else Config()
    shown = {Path(folder).resolve() for key in probing_folders(type(config)) if (folder := getattr(config, key))}
    return tuple(
        replace(choice, config=HALF) if choice.kind == "folder" and Path(choice.name).resolve() in shown else choice
        for choice in probing
    )


def _check_calibration(labels: Labels, scorer: Choice | None, problems: Problems) -> None:
    """It fits the scorer, if labels are chosen by one."""
    if labels.calibration is None or scorer is None or scorer.name == UNUSED:
        return
    try:
        CalibrationFile(labels.calibration).check(scorer.name, scorer.config)
    except UsageError as error:
        problems.add(error)


@dataclass
class _Reader:
    registry: Registry
    problems: Problems
    tables: dict[str, dict[str, Any]]
    folders: list[str] = field(default_factory=list)
    """Probing folders, once `probing` has been called."""
    no_probing: bool = False
    """Whether `probing` found no set that it could take."""
    uses: tuple[str, ...] = BACKENDS
    """Backends that the run has a use for, once `method` has been called."""

    def plugin(self, section: str, kind: str, name: str, settings: dict[str, Any]) -> Choice | None:
        try:
            cls = self.registry.find(kind, name).cls
        except DndError as error:
            nowhere = isinstance(error, UsageError) and kind == "probing-set"
            words = f"there is neither a folder nor a probing set named {name!r}"
            self.problems.add(UsageError(words, error.hint) if nowhere else error)
            return None
        assert cls is not None
        assert issubclass(cls.Config, Config)
        config = self.problems.check(section, cls.Config, settings)
        return Choice(kind, name, config) if config is not None else None

    def method(self) -> Choice | None:
        settings = dict(self.tables["method"])
        name = settings.pop("name", OWN_METHOD)
        if isinstance(name, str) and name in OWN_METHODS:
            self._leave_out()
            if name == "refine":
                self._check_refinable()
            config = self.problems.check("method", OWN_METHODS[name], settings)
            return Choice("method", name, config) if config is not None else None
        if not isinstance(name, str) or not any((e.kind, e.name) == ("method", name) for e in self.registry.entries):
            known = suggest(str(name), [*OWN_METHODS, *self.registry.names("method")])
            self.problems.add(f"method.name: there is no method named {name!r}", known)
            return None
        choice = self.plugin("method", "method", name, settings)
        if choice is not None:
            cls = self.registry.find("method", name).cls
            assert cls is not None
            assert issubclass(cls, Method)
            self.uses = cls.uses
        return choice

    def _leave_out(self) -> None:
        """Backends that the chosen summarizer and scorer make needless."""
        summarizer, scorer = self._class("summarizer"), self._class("scorer")
        if summarizer and issubclass(summarizer, Summarizer) and summarizer.reads == "images":
            self.uses = tuple(kind for kind in self.uses if kind != "captioner")
        if scorer and issubclass(scorer, Scorer) and not scorer.needs_images:
            self.uses = tuple(kind for kind in self.uses if kind != "generator")

    def _check_refinable(self) -> None:
        """It asks which exemplars show a candidate, and tests further ones on images."""
        scorer = self._class("scorer")
        if scorer and issubclass(scorer, Scorer) and scorer.seen is Scorer.seen:
            words = f"method.name: refine needs a scorer that sees candidates in exemplars, unlike {scorer.name}"
            self.problems.add(words, "Take one with a CLIP: coverage, clip-rank, image-product.")
        if "captioner" not in self.uses or "generator" not in self.uses:
            self.problems.add("method.name: refine needs a captioner and a generator")

    def _class(self, section: str) -> type[Plugin] | None:
        name = self.tables[section].get("backend")
        entries = self.registry.entries
        return next((e.cls for e in entries if (e.kind, e.name, e.state) == (section, name, "ok")), None)

    def backend(self, section: str) -> Choice | None:
        if section not in self.uses:
            return Choice(section, UNUSED, Config())
        settings = dict(self.tables[section])
        name = settings.pop("backend", None)
        if not isinstance(name, str):
            known = ", ".join(self.registry.names(section))
            self.problems.add(f"{section}.backend: none chosen. There are: {known}")
            return None
        if not self._fill_folders(section, settings):
            return None
        return self.plugin(section, section, name, settings)

    def _fill_folders(self, section: str, settings: dict[str, Any]) -> bool:
        """The probing folder for settings of type `ProbingFolder` that name no other; False where one is missing."""
        cls = self._class(section)
        settings |= {key: self.folders for key in (all_probing_folders(cls.Config) if cls else ())}
        for key in probing_folders(cls.Config) if cls else ():
            if settings.get(key, _PROBING) != _PROBING:
                continue
            settings.pop(key, None)
            if len(self.folders) == 1:
                settings[key] = self.folders[0]
            elif cls and cls.Config.model_fields[key].is_required():
                have = f"{len(self.folders)} folders" if self.folders else "no folder"
                if self.no_probing:  # which is the one problem
                    return False
                self.problems.add(f"{section}.{key}: name a folder, as the run has {have} of probing images (--probe)")
                return False
        return True

    def target(self, live: bool) -> TargetChoice | None:
        settings = dict(self.tables["target"])
        name, layers, units = settings.pop("name", None), settings.pop("layers", []), settings.pop("units", "all")
        own = {key: settings.pop(key) for key in LayerSettings.model_fields if key in settings}
        reads = self.problems.check("target", LayerSettings, own) or LayerSettings()
        layers = [layers] if isinstance(layers, str) else layers
        if not isinstance(layers, list | tuple) or not layers or not all(isinstance(x, str) and x for x in layers):
            self.problems.add(
                "target.layers: name at least one, as named_modules() calls it (--layer)",
                "`dnd doctor` with a guess, --layer x, lists layers near to it and those at the top.",
            )
            layers = ()
        try:
            units = unit_text(units)
            parse_units(units)
        except UsageError as error:
            self.problems.add(f"target.units: {error}", error.hint)
        if not isinstance(name, str) or not name:
            known = ", ".join(self.registry.names("target"))
            self.problems.add(f"target.name: none chosen (--target). There are: {known}; or your own module:function")
            return None
        if not live and ":" in name and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", name):
            self.problems.add(f"target.name: {name!r} is not of the form module:function", "As in my_models:resnet.")
        if live or ":" in name:
            config = self.problems.check("target", Config, settings, also=LayerSettings.model_fields)
            choice = Choice("function", name, config) if config is not None else None
        elif name in self.registry.names("target"):
            choice = self.plugin("target", "target", name, settings)
        else:
            choice = None
            self._no_target(name)
        distinct = tuple(dict.fromkeys(layers))
        if not isinstance(reads.layout, str) and len(reads.layout) != len(distinct):
            self.problems.add(f"target.layout: {len(reads.layout)} for {len(distinct)} layers", "One for all, or each.")
        return TargetChoice(choice.kind, choice.name, choice.config, distinct, units, reads) if choice else None

    def _no_target(self, name: str) -> None:
        """A name that is none of a target may be an architecture that one of them builds."""
        try:
            self.registry.find("target", name)
        except DndError as error:
            builders = [e.name for e in self.registry.entries if e.kind == "target" and e.cls and _builds(e.cls)]
            asked = f"--set target.architecture={name} --set target.weights=FILE"
            ways = f" An architecture of a library: --target {'|'.join(builders)} {asked}." if builders else ""
            own = " A function of your own in my_models.py: --target my_models:net."
            self.problems.add(type(error)(str(error), error.hint + ways + own))

    def probing(self) -> tuple[Choice, ...]:
        settings = dict(self.tables["probing"])
        one, several = settings.pop("set", None), settings.pop("sets", None)
        names = several if one is None else [one] if several is None else None
        if not isinstance(names, list | tuple) or not names or not all(isinstance(n, str) and n for n in names):
            known = ", ".join(self.registry.names("probing-set"))
            self.problems.add(
                "probing.set: choose a folder of images or a set",
                f"For example --probe photos/, or a set of a plugin: {known}.",
            )
            self.no_probing = True
            return ()
        named = [n for n in dict.fromkeys(names) if not self._is_folder(n)]
        own = {n: settings.pop(n) for n in named if isinstance(settings.get(n), dict)}
        if settings and len(named) != 1:
            self.problems.add(f"probing.{next(iter(settings))}: with {len(named)} named sets, write [probing.NAME]")
            settings = {}
        found = {}
        for name in dict.fromkeys(names):
            if name in own:
                choice = self.plugin(f"probing.{name}", "probing-set", name, {**settings, **own[name]})
            else:
                choice = self.plugin("probing", "probing-set", name, settings) if name in named else self._folder(name)
            if choice:
                found[choice.kind, choice.name] = choice
        self.folders = [name for kind, name in found if kind == "folder"]
        self.no_probing = not found
        return tuple(found.values())

    def _is_folder(self, name: str) -> bool:
        """A set's name wins over a folder of that name in the current folder, which `./name` still means."""
        if name in self.registry.names("probing-set"):
            return False
        return "/" in name or os.sep in name or name in (".", "..", "~") or is_folder(name)

    def _folder(self, name: str) -> Choice | None:
        path = os.path.abspath(os.path.expanduser(name))  # noqa: PTH111, Path's raises for ~ and an unknown user
        if not is_folder(path):
            what = "is not a folder" if os.path.lexists(path) else "does not exist"
            self.problems.add(f"probing.set: {name} {what}", "Give --probe a folder of images: --probe photos/.")
            return None
        return Choice("folder", path, Config())


def _builds(cls: type[Plugin]) -> bool:
    return "architecture" in cls.Config.model_fields


def read_run(
    source: str | os.PathLike[str] | None,
    registry: Registry,
    *,
    options: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Run:
    """The run that a run file (a path, or a name that a package offers) and the command line describe.

    `options` maps dotted keys ("target.name") to values, `settings` are `section.setting=value` texts and
    win over them. Without `source`: the run file `full` if options choose a target or probing set, else the one
    named as the chosen method, else `default`. Choosing another plugin than the run file does drops the settings of
    the plugin left out.
    """
    return build_run(_tables(source, dict(options or {}), settings), registry)


def examine_run(
    source: str | os.PathLike[str] | None, registry: Registry, *, options: Mapping[str, Any], settings: Sequence[str]
) -> tuple[Run, list[DndError]]:
    """As `read_run`, but with every problem beside what could be read: choices that could not are None."""
    try:
        run, problems = _build(_tables(source, dict(options), settings), registry, live_target=False)
    except DndError as error:
        nothing: dict[str, Any] = dict.fromkeys(("target", *BACKENDS))
        core: dict[str, Any] = {section: cls() for section, cls in CORE_SECTIONS.items()}
        method = Choice("method", OWN_METHOD, Config())
        return Run(**nothing, **core, probing=(), method=method, general=General()), [error]
    return run, problems.found


def _tables(source: str | os.PathLike[str] | None, options: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    from dnd.config.tables import apply_options, is_offered, parse_setting, read_tables

    if source is None:
        chosen = {*options, *(parse_setting(text)[0] for text in settings)}
        method = str(options.get("method.name"))
        if chosen & {"target.name", "probing.sets", "probing.set"}:
            source = "full"
        else:
            source = method if is_offered(method) else "default"
    tables = read_tables(source)
    apply_options(tables, options)
    apply_options(tables, dict(parse_setting(text) for text in settings))
    return tables
