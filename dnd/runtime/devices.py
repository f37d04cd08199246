"""Devices: which ones a run uses, and what an error says of the one it came from.

A setting names one device ("cpu", "cuda:1"), several of one kind ("cuda:0,cuda:1"), or all GPUs that are visible
("cuda", or "auto" where there is one). A device may be named twice: then it does two things at a time.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from dnd.errors import DndError, UsageError

PATTERN = r"^(auto|mps|cuda|cpu(,cpu)*|cuda:\d+(,cuda:\d+)*)$"
"""Of the setting `device`."""

_LOST = ("CUDA error", "HIP error", "device-side assert", "driver shutting down")
"""After one of these, nothing works on that device in the same process."""
_FULL = (
    "out of memory",
    "can't allocate memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def find_devices(wanted: str) -> tuple[str, ...]:
    """The devices that a setting means, at least one; imports torch. UsageError where there is no such device."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto" and not count:
        return ("cpu",)
    if wanted in ("auto", "cuda") and count:
        return ("cuda",) if count == 1 else tuple(f"cuda:{number}" for number in range(count))
    devices = tuple(wanted.split(","))
    for device in devices:
        missing = device == "mps" and not torch.backends.mps.is_available()
        if device.startswith("cuda"):
            missing = int(device.partition(":")[2] or 0) >= count
        if missing:
            raise UsageError(f"there is no device {device!r} here", "Take --device cpu, or auto for the best there is.")
    return devices


def is_full(error: BaseException) -> bool:
    """Whether memory ran out, the device's or the machine's."""
    return any(
        isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError" or any(t in str(one) for t in _FULL)
        for one in _with_causes(error)
    )


def is_lost(error: BaseException) -> bool:
    """Whether the device can no longer be used by the process that got this error."""
    return not is_full(error) and any(
        isinstance(one, RuntimeError) and any(text in str(one) for text in _LOST) for one in _with_causes(error)
    )


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def free_memory() -> None:
    """Give back what is no longer referred to."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reason_of(error: BaseException) -> str:
    """One line that says what went wrong; of errors whose text seldom does ("'colour'"), with their type."""
    text = " ".join(str(error).split()) or ("out of memory" if is_full(error) else type(error).__name__)
    if isinstance(error, ArithmeticError | AssertionError | AttributeError | LookupError | NameError | TypeError):
        text = f"{type(error).__name__}: {text}" if str(error) else text
    return text if len(text) <= 400 else f"{text[:397]}..."


def place_of(error: BaseException) -> str:
    """The file and line that an error comes from: "plugin.py:31"; empty for one that says all itself."""
    if error.__traceback__ is None or isinstance(error, DndError):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
