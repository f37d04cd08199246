"""What a model may need in memory, and what there is.

A backend knows best what it needs (`dnd.api.Backend.memory`). Without that, its weights are taken to be as
large as their files, and the work on top follows a rule of thumb for one item at a time: a quarter of the weights, at
least 2 GB on a GPU and 512 MB on a CPU.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnd.api import Config, model_names
from dnd.errors import ModelError
from dnd.models.lockfile import LockedModel
from dnd.models.weights import Weights

WORK_SHARE, LEAST_WORK, LEAST_WORK_ON_CPU = 0.25, 2 * 2**30, 512 * 2**20


@dataclass(frozen=True)
class Need:
    """Bytes on the device, and how they were found."""

    weights: int
    work: int
    how: str
    sure: bool = True
    """False for a guess."""

    @property
    def total(self) -> int:
        return self.weights + self.work


def work_beside(weights: float, device: str) -> int:
    """The rule of thumb."""
    return max(int(weights * WORK_SHARE), LEAST_WORK_ON_CPU if device == "cpu" else LEAST_WORK)


def estimate(config: Config, weights: Weights, device: str) -> Need | None:
    """What a backend with these settings may need on a device; None where it names no models; ModelError if models.lock
    knows no sizes."""
    names = model_names(config)
    if not names:
        return None
    stored = sum(_stored_bytes(weights.find(name)) for name in names)
    return Need(stored, work_beside(stored, device), "as large as their files", sure=False)


def _stored_bytes(model: LockedModel) -> int:
    """Size of the files of weights; of two copies in different precision the wider one counts."""
    files = {file.path: file.size for file in model.files if file.path.endswith(".safetensors")}
    copies = {path for path in files if ".fp16." in path and path.replace(".fp16.", ".") in files}
    sizes = [size for path, size in files.items() if path not in copies]
    if None in sizes:
        raise ModelError(f"models.lock does not know the size of the model {model.name!r}")
    return sum(size for size in sizes if size is not None)


# --- what there is -----------------------------------------------------------------------------------


def free_memory(device: str) -> tuple[int, int]:
    """(free, all) bytes of a device; of the machine's memory for a CPU, within what a container may take."""
    import torch

    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    if device == "mps":
        total = torch.mps.recommended_max_memory()
        return total - torch.mps.driver_allocated_memory(), total
    return _machine_memory()


def _machine_memory() -> tuple[int, int]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("utf-8").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text("utf-8"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
        used = int((group / "memory.current").read_text("utf-8")) - int(stat["inactive_file"])
        free, total = min(free, limit - used), min(total, limit)
    except (OSError, ValueError, KeyError):  # not Linux, or no limit
        pass
    return free, total


def device_name(device: str) -> str:
    """A device as its maker calls it; rates are kept by it."""
    import platform

    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
        name = found[1].strip() if found else name
    except OSError:
        pass
    return f"{name}, GPU" if device == "mps" else f"{name}, {os.cpu_count()} CPUs"


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
