"""Devices: which ones a run uses, and which one an error came from.

A setting names one device ("cpu", "cuda:1"), several of one kind ("cuda:0,cuda:1"), or all GPUs that are visible
("cuda", or "auto" where there is one). A device may be named twice: then it does two things at a time.
"""

from __future__ import annotations

import gc
import sys
import traceback
from pathlib import Path

from dnd.api import is_out_of_memory
from dnd.errors import DndError, UsageError

PATTERN = r"^(auto|mps|cuda|cpu(,cpu)*|cuda:\d+(,cuda:\d+)*)$"
"""Of the setting `device`."""


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


def free_memory() -> None:
    """Give back what is no longer referred to."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def reason_of(error: BaseException) -> str:
    """What went wrong, in one line, with the error's type where its text alone is unclear ("'colour'")."""
    text = " ".join(str(error).split()) or ("out of memory" if is_out_of_memory(error) else type(error).__name__)
    if isinstance(error, ArithmeticError | AssertionError | AttributeError | LookupError | NameError | TypeError):
        text = f"{type(error).__name__}: {text}" if str(error) else text
    return text if len(text) <= 400 else f"{text[:397]}..."


def place_of(error: BaseException) -> str:
    """The file and line that an error comes from: "plugin.py:31"; empty where its message suffices."""
    if error.__traceback__ is None or isinstance(error, DndError):
        return ""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
