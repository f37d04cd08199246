"""Python, torch, the driver and the devices; which way to the network there is."""

from __future__ import annotations

import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from dnd.doctor.check import Check, Context, gigabytes
from dnd.errors import UsageError
from dnd.runtime.memory import device_name, free_memory

_DRIVER = Path("/proc/driver/nvidia/version")


def check_python(context: Context) -> Iterator[Check]:
    detail = f"Python {platform.python_version()} in {sys.prefix}, dnd {metadata.version('dnd-describe')}"
    yield Check("python", "ok", detail)


def check_torch(context: Context) -> Iterator[Check]:
    """torch fits the driver, where there is one."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    driver = _driver()
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    detail = f"torch {torch.__version__} {built}; " + (f"NVIDIA driver {driver}" if driver else "no NVIDIA driver")
    if not driver or usable:
        yield Check("torch", "ok", detail)
    elif torch.version.cuda is None:
        remedy = "Install a torch that was built for CUDA in its place; the one here sees no GPU."
        yield Check("torch", "warning", detail, remedy)
    else:
        reported = "; ".join(str(one.message).partition("\n")[0] for one in caught) or "it finds no device"
        remedy = "Run `nvidia-smi`: is a GPU visible, and is the driver new enough for this torch?"
        yield Check("torch", "warning", f"{detail}; torch cannot use it: {reported}", remedy)


def check_devices(context: Context) -> Iterator[Check]:
    """The run's devices, then the others."""
    import torch

    used: tuple[str, ...] = ()
    try:
        used = tuple(dict.fromkeys(context.run.devices))
    except UsageError as error:
        yield Check.of("device", error)
    for device in used:
        yield _device("device" if len(used) == 1 else f"device.{device}", device)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda:{index}" not in used and not (index == 0 and "cuda" in used):
            yield _device(f"device.cuda:{index}", f"cuda:{index}", "not used by this run; ")


def _device(name: str, device: str, role: str = "") -> Check:
    free, total = free_memory(device)
    detail = f"{role}{device}: {device_name(device)}, {gigabytes(free)} of {gigabytes(total)} memory free"
    if not device.startswith("cuda"):
        return Check(name, "ok", detail)
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    detail += f", compute capability {major}.{minor}"
    if _supported(major, minor, torch.cuda.get_arch_list()):
        return Check(name, "ok", detail)
    remedy = "Install a torch that was built for this GPU, or take --device cpu."
    return Check(name, "warning" if role else "fault", f"{detail}, for which this torch was not built", remedy)


def _supported(major: int, minor: int, built: list[str]) -> bool:
    """Whether machine code of the same generation, or code that the driver can compile, is among `built`."""
    for arch in built:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", arch):
            has = int(match[2]), int(match[3])
            if has <= (major, minor) and (match[1] == "compute" or has[0] == major):
                return True
    return not built


def _driver() -> str:
    """Version of NVIDIA's kernel module; "" without one."""
    try:
        found = re.search(r"(\d+\.\d+(\.\d+)?)", _DRIVER.read_text("utf-8"))
    except OSError:
        return ""
    return found[1] if found else "of an unknown version"


def check_network(context: Context) -> Iterator[Check]:
    """For information: a run needs no network and is kept from using one."""
    import socket

    try:
        others = [name for _, name in socket.if_nameindex() if name not in ("lo", "lo0")]
    except (AttributeError, OSError):
        others = []
    around = f"interfaces besides loopback: {', '.join(others)}" if others else "no interface besides loopback"
    switches = " ".join(f"{name}={os.environ[name]}" for name in sorted(os.environ) if name.endswith("_OFFLINE"))
    yield Check("network", "ok", f"none is needed; {around}; {switches or 'no offline switch is set'}")
