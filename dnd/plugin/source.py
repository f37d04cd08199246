"""The code of plugins that are installed as source: it can change while their version stays."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

_INSTALLED = frozenset({"site-packages", "dist-packages"})


def source_digest(cls: type) -> str:
    """sha256 over the Python files of a class's top-level package or module; "" for one that was installed as a copy,
    which its version names, or that has no file."""
    module = sys.modules.get(cls.__module__.partition(".")[0])
    file = getattr(module, "__file__", None)
    folders = [Path(place) for place in getattr(module, "__path__", ())]
    files = sorted((path, path.relative_to(folder)) for folder in folders for path in folder.rglob("*.py"))
    if not files and file:
        files = [(Path(file), Path(Path(file).name))]
    if not files or any(_INSTALLED.intersection(path.resolve().parts) for path, _ in files[:1]):
        return ""
    digest = hashlib.sha256()
    for path, name in files:
        digest.update(f"{name.as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
