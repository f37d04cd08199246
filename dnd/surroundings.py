"""What a run needs around it: the switches of the libraries below, and the packages of its plugins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dnd.errors import PluginError

if TYPE_CHECKING:
    from dnd.registry import Entry

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",  # its native downloader would pass by `dnd.offline`
    "DO_NOT_TRACK": "1",  # the hub, vLLM
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",  # or it asks which of the machine's addresses leads to a public one
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What libraries read before they reach out. These win over what the user has set."""
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "GOMP_SPINCOUNT": "20000",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Progress and errors are ours to show; processes of one machine talk over loopback; torch's idle threads soon leave
the cores to those that decode images instead of spinning (benchmarks/probing.py: the probing pass at 1.0 of a bare loop
instead of 0.6); and pyarrow gives memory back (writing activations of 100,000 units: 14 MB more in use, not 83)."""


def set_switches() -> None:
    """Tell the libraries to stay offline and quiet; must run before they are imported. What the user set stays,
    but for the offline switches."""
    import logging

    os.environ.update(OFFLINE)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells every CPU which kernels it lacks


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
