"""The code of plugins that are installed as source: it can change while their version stays."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import util
from pathlib import Path

from dnd.files import files_below
from dnd.store.digests import sha256_of

_INSTALLED = frozenset({"site-packages", "dist-packages"})
_CODE = frozenset({".py", ".so", ".pyd"})
_DATA = frozenset({".csv", ".jinja", ".json", ".toml", ".tsv", ".txt", ".yaml", ".yml"})
_LARGEST = 1 << 20
"""Bytes of a file of data that counts as part of the code: prompts, word lists, tables."""
_OURS = frozenset({"dnd", "builtins", *sys.stdlib_module_names})


@cache
def source_digest(cls: type) -> str:
    """sha256 over the files of the top-level packages or modules that a class and its bases come from, and of those
    that these import: their code, small files of data, and what else the code names that lies beside it. "" where all
    are installed as copies, which a version names.

    Taken once for a class: it is that of the code as it was imported, whatever becomes of the files.
    """
    waiting = [base.__module__.partition(".")[0] for base in cls.__mro__]
    seen: dict[str, dict[str, Path]] = {}
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in _OURS:
            seen[name] = dict(_files(name))
            for inside, path in list(seen[name].items()):
                imported, beside = _named(path)
                waiting += imported
                seen[name] |= {f"{inside}: {one.relative_to(path.parent).as_posix()}": one for one in beside}
    lines = [
        f"{name}/{inside} {sha256_of(path)}\n"
        for name, files in sorted(seen.items())
        for inside, path in sorted(files.items())
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest() if lines else ""


def is_installed(module: str) -> bool:
    """Whether a module belongs to an installed package, whose version says what its code is."""
    top = module.partition(".")[0]
    if top in _OURS:
        return True
    found = sys.modules.get(top)
    places = [*getattr(found, "__path__", []), getattr(found, "__file__", None)]
    return any(_is_of_packages(place) for place in places if place)


@cache
def _is_of_packages(place: str) -> bool:
    return bool(_INSTALLED.intersection(Path(place).resolve().parts))


def _files(name: str) -> Iterator[tuple[str, Path]]:
    """(path within, path) of each file of a top-level package or module, if it is installed as source."""
    module = sys.modules.get(name)
    folders, file = getattr(module, "__path__", None), getattr(module, "__file__", None)
    if module is None:
        with suppress(ImportError, ValueError):
            spec = util.find_spec(name)
            folders, file = (spec.submodule_search_locations, spec.origin) if spec else (None, None)
    for place in folders if folders is not None else [file] if file else []:
        path = Path(place).absolute()
        if not path.exists() or _is_of_packages(str(path)):
            continue
        found = map(Path, files_below(path)) if path.is_dir() else [path]
        yield from ((one.relative_to(path.parent).as_posix(), one) for one in found if _counts(one))


def _counts(path: Path) -> bool:
    if path.suffix in _CODE:
        return path.is_file()
    return path.suffix in _DATA and path.is_file() and path.stat().st_size <= _LARGEST


def _named(path: Path) -> tuple[set[str], set[Path]]:
    """Top-level modules that a Python file imports, anywhere in it, and files beside it that it names, of any kind."""
    if path.suffix != ".py":
        return set(), set()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template, say
        return set(), set()
    imported, beside = set[str](), set[Path]()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                imported |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                imported.add(module)
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(name)), *_]
            ):
                imported |= {name} if called in ("import_module", "__import__") else set()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            beside |= set(_beside(path, node.value))
    return {name.partition(".")[0] for name in imported if name}, beside


def _beside(path: Path, text: str) -> Iterator[Path]:
    """The file of that name in a Python file's folder, or those of code and data in the folder of that name."""
    parts = Path(text).parts if 0 < len(text) < 200 and text.isprintable() else ()
    if not parts or Path(text).is_absolute() or ".." in parts:
        return
    found = path.parent / text
    if found.is_file() and found != path:
        yield found
    elif found.is_dir():
        yield from filter(_counts, map(Path, files_below(found)))
