"""What a run needs around it: the switches of the libraries below, and the packages of its plugins."""

from __future__ import annotations

import gc
import os

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",  # its native downloader would pass by `dnd.offline.block`
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What libraries read before they reach out. These win over what the user has set."""
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
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
    os.environ.update(OFFLINE)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def collect_rarely() -> None:
    """Let Python look for garbage far less often: for a process that is `dnd`'s alone, before it imports libraries.
    They make half a million objects that stay, and looking through those took a fifth of the time of importing them."""
    gc.set_threshold(50_000)
