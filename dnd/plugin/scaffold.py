"""A new plugin's folder: module, pyproject.toml with the entry point, tests of the contract, a CI workflow."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from string import Template

from dnd import DISTRIBUTION
from dnd.errors import StoreError, UsageError
from dnd.plugin.registry import Registry

_TEMPLATE = Path(__file__).parent / "template"
_TAKEN = {"conftest", "setup", "test", "tests", "test_contract"}
"""Module names that pytest or the package's own tests use."""


@dataclass(frozen=True)
class _About:
    """What the files of one kind need besides the names."""

    word: str
    """Last word of the class's name."""
    contract: str
    use: str
    dependencies: tuple[str, ...] = ("numpy", "pillow")
    imports: tuple[str, ...] = ()
    """Of the test file, in the order that linters want."""
    testing: tuple[str, ...] = ()
    """Names from dnd.testing besides the contract."""


_ABOUT = {
    "captioner": _About(
        "Captioner",
        "CaptionerContract",
        "dnd run default --captioner $name --units 3,4 --set probing.count=500",
        imports=("from PIL import Image",),
    ),
    "summarizer": _About(
        "Summarizer",
        "SummarizerContract",
        "dnd run default --summarizer $name --units 3,4 --set probing.count=500",
        dependencies=(),
        imports=("import pytest", "from dnd import api"),
    ),
    "generator": _About(
        "Generator",
        "GeneratorContract",
        "dnd run default --generator $name --units 3,4 --set probing.count=500",
        imports=("import numpy as np", "from dnd import api"),
    ),
    "scorer": _About(
        "Scorer",
        "ScorerContract",
        "dnd run default --scorer $name --units 3,4 --set probing.count=500",
        dependencies=("numpy",),
        imports=("import numpy as np", "import pytest"),
        testing=("evidence",),
    ),
    "target": _About(
        "Target",
        "TargetContract",
        "dnd run default --target $name --layer patterns --units 0-3 --set probing.count=500",
        dependencies=("numpy", "pillow", "torch"),
        imports=("import numpy as np", "import torch", "from PIL import Image"),
    ),
    "probing-set": _About(
        "Images",
        "ProbingSetContract",
        "dnd run default --probe $name --units 3,4",
        imports=("import numpy as np",),
    ),
    "method": _About(
        "Method",
        "MethodContract",
        "dnd run default --method $name --units 0-9 --set probing.count=500",
        dependencies=(),
        imports=("import pytest",),
        testing=("FakeStudy",),
    ),
}


def write_plugin(name: str, kind: str, parent: Path) -> Path:
    """Write the package into a new folder `parent`/`name`, which is returned; nothing that exists is touched."""
    module = _module_name(name)
    _check_free(name, kind, module)
    folder = parent / name
    files = {
        path: Template((_TEMPLATE / source).read_text("utf-8")).substitute(_values(name, kind, module))
        for path, source in {
            "pyproject.toml": "pyproject.toml.in",
            "README.md": "README.md.in",
            ".gitignore": "gitignore.in",
            f"{module}.py": f"{kind}.py.in",
            "tests/test_contract.py": "test_contract.py.in",
            ".github/workflows/test.yml": "workflow.yml.in",
        }.items()
    }
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    except FileExistsError as error:
        raise UsageError(
            f"{error.filename} exists already, and nothing is written over",
            "Choose another NAME, or another place with --dir.",
        ) from error
    except OSError as error:
        raise StoreError(f"cannot write {error.filename}: {error.strerror}", "Choose a place with --dir.") from error
    return folder


def _module_name(name: str) -> str:
    """A name that pip, the registry and `import` take -> the module's; UsageError for any other."""
    if not name.isascii() or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        raise UsageError(
            f"{name!r} is no name for a package",
            "Letters, digits, '-', '_' and '.', with a letter first and no sign at the end: my-captioner.",
        )
    module = re.sub(r"[-_.]+", "_", name).lower()
    if not module.isidentifier() or keyword.iskeyword(module):
        raise UsageError(f"{name!r} gives the module {module!r}, which Python cannot import", f"Try my-{name}.")
    return module


def _check_free(name: str, kind: str, module: str) -> None:
    """UsageError where the name would hide, or be hidden by, something that is installed."""
    hint = f"Choose another NAME: my-{name}, say."
    if module in _TAKEN or module in sys.stdlib_module_names:
        raise UsageError(f"the module {module!r} would stand in the way of another of that name", hint)
    for entry in Registry.load().entries:
        if (entry.kind, entry.name) == (kind, name):
            raise UsageError(f"there is a {kind} {name!r} already, of {entry.distribution}: the two would clash", hint)
    if util.find_spec(module) is not None:
        raise UsageError(f"a module {module!r} is installed already: the two would hide each other", hint)
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    raise UsageError(f"a package {name!r} is installed already", hint)


def _values(name: str, kind: str, module: str) -> dict[str, str]:
    """What the placeholders of all template files stand for."""
    about = _ABOUT[kind]
    stem = "".join(part.capitalize() for part in module.split("_"))
    values = {
        "name": name,
        "kind": kind,
        "module": module,
        "distribution": re.sub(r"[-_.]+", "-", name).lower(),
        "class_name": stem.removesuffix(about.word) + about.word,
        "contract": about.contract,
    }
    return {
        **values,
        "dependencies": ", ".join(f'"{one}"' for one in (_lowest(), *about.dependencies)),
        "use": Template(about.use).substitute(values),
        "imports": _imports(about, kind, values),
        "tests": Template((_TEMPLATE / f"{kind}_test.py.in").read_text("utf-8")).substitute(values).rstrip(),
    }


def _lowest() -> str:
    """dnd as a dependency, no older than the one that wrote the plugin: an older one may not have what it uses."""
    return f"{DISTRIBUTION}>={metadata.version(DISTRIBUTION)}"


def _as_linters_do(name: str) -> tuple[bool, str]:
    """Classes before functions."""
    return name[0].islower(), name


def _imports(about: _About, kind: str, values: dict[str, str]) -> str:
    """Those of the test file: libraries, a blank line, the plugin itself."""
    names = ", ".join(sorted([about.contract, *about.testing, "runtime"], key=_as_linters_do))
    ours = ["from dnd.plugin.registry import Registry", f"from dnd.testing import {names}"]
    plain = [line for line in about.imports if line.startswith("import")]
    rest = sorted([*ours, *(line for line in about.imports if line.startswith("from"))], key=str.lower)
    also = ["UNITS"] if kind == "target" else []
    own = f"from {values['module']} import {', '.join([*also, values['class_name']])}"
    return "\n".join([*plain, *rest, "", own])
