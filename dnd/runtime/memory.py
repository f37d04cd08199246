"""What a model needs in memory, from the headers of its safetensors files; and what there is.

The weights are what they are on the device: `dtype`, `quantization` and `offload` of a backend's settings count where
it has settings of these names. The work on top is a rule of thumb for one item at a time: a quarter of the weights,
at least 2 GB on a GPU and 512 MB on a CPU; backends take fewer items at once where memory is short.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnd.api import Config, model_names
from dnd.errors import ModelError
from dnd.models.lockfile import LockedModel
from dnd.models.weights import Weights

WORK_SHARE, LEAST_WORK, LEAST_WORK_ON_CPU = 0.25, 2 * 2**30, 512 * 2**20
_NOT_PACKED = re.compile(r"embed|lm_head|norm|shared|position|wte|wpe")
"""Matrices that quantization leaves as they are."""
_FOUR_BITS = 0.5 + 4 / 64
_PACKED = {"8bit": 1.0, "fp8": 1.0, "4bit": _FOUR_BITS, "bitsandbytes": _FOUR_BITS}
"""Bytes of a packed weight; 4-bit weights come with a float32 for every 64. The second name of each is vLLM's."""
_SETTINGS = ("dtype", "quantization", "offload")
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "half": 2.0}


@dataclass(frozen=True)
class Need:
    """Bytes on the device, and how they were found."""

    weights: int
    work: int
    how: str
    sure: bool = True
    """False where the weights could not be looked at, or the backend can do with less."""

    @property
    def total(self) -> int:
        return self.weights + self.work


@dataclass(frozen=True)
class Tensor:
    name: str
    count: int
    """Elements."""
    dims: int
    bytes_each: float
    is_float: bool


def work_beside(weights: float, device: str) -> int:
    """The rule of thumb."""
    return max(int(weights * WORK_SHARE), LEAST_WORK_ON_CPU if device == "cpu" else LEAST_WORK)


def estimate(
    config: Config, weights: Weights, device: str, free: int, chosen: Mapping[str, Any] | None = None
) -> Need | None:
    """What a backend with these settings needs on a device; None where it has no models; ModelError if nothing tells.

    `chosen` is what its automatic settings came to; while that is not known, "auto" is the first that fits into `free`.
    """
    parts: dict[str, list[Tensor]] = {}
    stored, unseen = 0, []
    for name in model_names(config):
        model = weights.find(name)
        try:
            parts |= _parts(model, weights.folder(name))
        except (ModelError, OSError):
            unseen.append(name)
            stored += _stored_bytes(model)
    if not parts and not unseen:
        return None
    settings = {key: (chosen or {}).get(key, getattr(config, key, None)) for key in _SETTINGS}
    need = Need(0, 0, "")
    for how, packed, offload in _ways(settings, device):
        sizes = [weight_bytes(tensors, settings["dtype"], packed, device) for tensors in parts.values()]
        total = (max(sizes, default=0) if offload else math.fsum(sizes)) + stored
        words = f"sizes in models.lock, as {', '.join(unseen)} is not whole here" if unseen else "from their headers"
        sure = not unseen and not offload
        need = Need(int(total), work_beside(total, device), f"{words}, {how}" if how else words, sure)
        if need.total <= free:
            break
    return need


def _ways(settings: Mapping[str, Any], device: str) -> Iterable[tuple[str, str, bool]]:
    """(in words, packing, one part at a time) in the order in which a backend would choose."""
    quantization, offload = settings["quantization"], settings["offload"]
    if quantization == "auto" and device != "cpu":
        packings = ["", "8bit", "4bit"]
    else:
        packings = [quantization if quantization in _PACKED else ""]
    ways = [(f"in {packing}" if packing else "", packing, False) for packing in packings]
    if offload in (None, False, "none", "never", "off"):
        return ways
    moved = [(f"{how} with offload".strip(), packing, True) for how, packing, _ in ways]
    return [*ways, moved[-1]] if offload == "auto" else moved


def weight_bytes(tensors: Iterable[Tensor], dtype: str | None, packing: str, device: str) -> float:
    """What tensors of a model take on a device. `dtype` "auto" is half precision on a GPU, None as they are stored;
    `packing` is "8bit", "4bit", or anything else for none."""
    return math.fsum(_bytes_of(tensor, dtype, _PACKED.get(packing), device) for tensor in tensors)


def _bytes_of(tensor: Tensor, dtype: str | None, packed: float | None, device: str) -> float:
    if not tensor.is_float:
        return tensor.count * tensor.bytes_each
    if packed is not None and tensor.dims == 2 and not _NOT_PACKED.search(tensor.name):
        return tensor.count * packed
    each = tensor.bytes_each
    if dtype == "auto":
        each = 4.0 if device == "cpu" else min(each, 2.0)
    elif dtype in _BYTES:
        each = _BYTES[dtype]
    return tensor.count * each


def _stored_bytes(model: LockedModel) -> int:
    """Size of the files of weights, which are not here."""
    sizes = [file.size for file in model.files if file.path.endswith(".safetensors")]
    if None in sizes:
        raise ModelError(f"the model {model.name!r} is not here and models.lock does not know its size")
    return sum(size for size in sizes if size is not None)


def _parts(model: LockedModel, folder: Path) -> dict[str, list[Tensor]]:
    """The tensors of a model's parts: of a pipeline its subfolders', of other models all in one."""
    files = [file.path for file in model.files if file.path.endswith(".safetensors")]
    plain = {path for path in files if ".fp16." not in path}
    parts: dict[str, list[Tensor]] = {}
    for path in files:
        if path.replace(".fp16.", ".") in plain - {path}:
            continue  # the same weights twice: the wider ones count
        parts.setdefault(f"{model.name}/{path.rpartition('/')[0]}", []).extend(read_tensors(folder / path))
    return parts


def read_tensors(file: Path) -> list[Tensor]:
    """What is in a safetensors file, of which only the header is read; ModelError where it is not one."""
    from safetensors import SafetensorError, safe_open

    found = []
    try:
        with safe_open(file, framework="numpy") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                shape, dtype = part.get_shape(), part.get_dtype()
                bits = re.search(r"\d+", dtype)
                each = int(bits[0]) / 8 if bits else 1.0
                found.append(Tensor(name, math.prod(shape), len(shape), each, dtype.startswith(("F", "BF"))))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}") from error
    return found


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
