"""The most memory that this process has had in use over a while."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """From its making on: main memory of this process, and memory of its GPUs. Worker processes are not counted.

    What was in use before stays counted. Where the system cannot forget an earlier maximum (only Linux can), main
    memory is that of the process's whole life.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            _CLEAR.write_text("5")  # resets VmHWM, the high-water mark
        for device, torch in _gpus():
            torch.cuda.reset_peak_memory_stats(device)

    def bytes(self) -> int:
        """Of main memory."""
        with suppress(OSError):
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024

    def device_bytes(self) -> int:
        """Of the fullest GPU, as torch counts it; 0 without one."""
        return max((int(torch.cuda.max_memory_allocated(device)) for device, torch in _gpus()), default=0)


def _gpus() -> list[tuple[int, Any]]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return []
    return [(device, torch) for device in range(torch.cuda.device_count())]
