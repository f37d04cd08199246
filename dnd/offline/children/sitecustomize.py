"""Every Python child of an offline command runs this first, as PYTHONPATH leads here; then the one it stands before."""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH120


def _run(name: str, spec: Any) -> Any:
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# By its file, under its whole name: `dnd` itself need not be there, and where it is, this is its module.
_NAME = "dnd.offline.hook"
_hook = _run(_NAME, spec_from_file_location(_NAME, os.path.join(os.path.dirname(_HERE), "hook.py")))  # noqa: PTH118, PTH120
if os.environ.get(_hook.LOG):
    _hook.install(os.environ[_hook.LOG])
_theirs = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != _HERE])
if _theirs is not None:
    _run("sitecustomize", _theirs)
