"""A matrix file -> the combinations that it asks for, checked before any work.

Every variant of an axis is taken with every variant of the others, but for what `exclude` names; `combinations` are
added one by one. A variant is written as a run file is: what it says is laid over the base run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from dnd.api import Config
from dnd.config.problems import Problems
from dnd.config.read import build_run
from dnd.config.run import Run
from dnd.config.tables import apply_options, flatten, read_tables
from dnd.errors import UsageError
from dnd.files import read_text
from dnd.plugin.registry import Registry
from dnd.store.toml import parse_toml
from dnd.text import suggest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
"""Of a variant or combination: it becomes a part of a folder's name."""
_MOST = 10_000


class _File(Config):
    """The tables of a matrix file."""

    base: str = "default"
    """A run file, as `dnd run` takes it."""
    truth: str | None = None
    """A truth file as `dnd eval --truth` takes it, relative to the matrix file."""
    encoder: str | None = None
    """A sentence encoder: an entry of models.lock or a folder."""
    metric: str | None = None
    """The figure that is ranked, plotted and compared."""
    reference: str | None = None
    """The combination that the others are compared with in the tables; the first where none is named."""
    repeats: int = pydantic.Field(1, ge=1, le=100)
    """How often each combination is run: with its seed, the next one, and so on."""
    settings: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Of every combination."""
    axes: dict[str, dict[str, dict[str, Any]]] = pydantic.Field(default_factory=dict)
    exclude: list[dict[str, str | list[str]]] = pydantic.Field(default_factory=list)
    combinations: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)


@dataclass(frozen=True)
class Combination:
    """One row of the tables."""

    name: str
    base: str
    layers: tuple[Mapping[str, Any], ...]
    """Tables laid over the base, the last on top."""
    variants: Mapping[str, str] = field(default_factory=dict)
    """Axis -> variant; none for one that was added by itself."""
    note: str = ""

    def run(self, registry: Registry, repeat: int = 0) -> Run:
        """With its seed, or the `repeat`-th after it. Raises UsageError or PluginError where it does not fit."""
        tables = read_tables(self.base)
        for layer in self.layers:
            apply_options(tables, flatten(layer))
        run = build_run(tables, registry)
        if not repeat:
            return run
        apply_options(tables, {"seed": run.seed + repeat})
        return build_run(tables, registry)


@dataclass(frozen=True)
class Matrix:
    """What a bench is asked for."""

    path: Path
    combinations: tuple[Combination, ...]
    reference: str
    truth: Path | None = None
    encoder: str | None = None
    metric: str | None = None
    repeats: int = 1

    def only(self, names: Sequence[str]) -> Matrix:
        """Some of its combinations; the first of them is the reference where the matrix's own is left out."""
        known = [one.name for one in self.combinations]
        for name in names:
            if name not in known:
                raise UsageError(f"--only: there is no combination {name!r}", suggest(name, known))
        chosen = tuple(one for one in self.combinations if one.name in names)
        reference = self.reference if self.reference in names else chosen[0].name
        return replace(self, combinations=chosen, reference=reference)


def read_matrix(path: Path) -> Matrix:
    """UsageError tells of everything that is wrong with the file itself; runs are not looked at."""
    try:
        tables = parse_toml(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the matrix {path}: {getattr(error, 'strerror', None) or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    problems = Problems()
    file = problems.check("", _File, tables)
    problems.raise_if_any()
    assert file is not None
    _check_names(file, problems)
    problems.raise_if_any()
    found = [*_grid(file, path), *_single(file, path)]
    names = [one.name for one in found]
    if not found:
        raise UsageError(f"{path} asks for no combination", "Write [axes.NAME] tables, or [combinations.NAME].")
    if file.reference is not None and file.reference not in names:
        raise UsageError(f"reference: there is no combination {file.reference!r}", suggest(file.reference, names))
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two combinations are called {twice!r}", "Rename the one under [combinations].")
    truth = path.parent / file.truth if file.truth else None
    if truth is not None and not truth.is_file():
        raise UsageError(f"truth: there is no file {truth}")
    if (file.truth is None) != (file.encoder is None):
        raise UsageError("truth and encoder go together: the encoder compares labels with the truth")
    return Matrix(path, tuple(found), file.reference or names[0], truth, file.encoder, file.metric, file.repeats)


def _check_names(file: _File, problems: Problems) -> None:
    named = [*file.axes, *(variant for axis in file.axes.values() for variant in axis), *file.combinations]
    for name in named:
        if not _NAME.fullmatch(name):
            problems.add(f"{name!r} is no name for a variant: letters, digits, points and hyphens are wanted")
    for axis, variants in file.axes.items():
        if not variants:
            problems.add(f"axes.{axis}: it has no variants")
    size = 1
    for variants in file.axes.values():
        size *= max(1, len(variants))
    if size > _MOST:
        problems.add(f"the axes span {size:,} combinations; at most {_MOST:,} are allowed")
    for rule in file.exclude:
        for axis, named_variants in rule.items():
            if axis not in file.axes:
                problems.add(UsageError(f"exclude: there is no axis {axis!r}", suggest(axis, file.axes)))
                continue
            for variant in [named_variants] if isinstance(named_variants, str) else named_variants:
                if variant not in file.axes[axis]:
                    known = file.axes[axis]
                    problems.add(UsageError(f"exclude: {axis} has no variant {variant!r}", suggest(variant, known)))


def _grid(file: _File, path: Path) -> Iterator[Combination]:
    if not file.axes:
        return
    for names in itertools.product(*file.axes.values()):
        variants = dict(zip(file.axes, names, strict=True))
        if any(rule and _applies(rule, variants) for rule in file.exclude):
            continue
        layers = (file.settings, *(file.axes[axis][variant] for axis, variant in variants.items()))
        yield Combination("+".join(names), _base(file.base, path), layers, variants)


def _applies(rule: Mapping[str, str | list[str]], variants: Mapping[str, str]) -> bool:
    return all(
        variants[axis] == wanted if isinstance(wanted, str) else variants[axis] in wanted
        for axis, wanted in rule.items()
    )


def _single(file: _File, path: Path) -> Iterator[Combination]:
    for name, table in file.combinations.items():
        own = dict(table)
        base, note = own.pop("base", file.base), own.pop("note", "")
        if not isinstance(base, str) or not isinstance(note, str):
            raise UsageError(f"combinations.{name}: base and note are texts")
        yield Combination(name, _base(base, path), (file.settings, own), {}, note)


def _base(name: str, path: Path) -> str:
    """A run file beside the matrix, else what `dnd run` would make of the name."""
    beside = path.parent / name
    return str(beside) if beside.is_file() else name
