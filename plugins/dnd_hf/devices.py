"""What a GPU has free, and what its errors mean."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

from dnd import api


def free_memory(device: str) -> int | None:
    """Bytes that could still be taken on a GPU, this process's own cache included; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_memory_or_none(device: str) -> int | None:
    """As `free_memory`, and None too for a GPU that does not answer."""
    try:
        return free_memory(device)
    except RuntimeError:
        return None


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and api.is_out_of_memory(error)


@contextmanager
def device_errors(model: str, device: str, advice: str) -> Iterator[None]:
    """Turn memory that ran out and a GPU that is gone into `DeviceError`, which ends the stage."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            free = free_memory_or_none(device)
            left = "" if free is None else f"; {free / 1e9:.1f} GB are free"
            raise api.DeviceError(f"{model} does not fit into the memory of {device}{left}", advice) from error
        if api.is_device_lost(error):
            raise api.DeviceError(
                f"{device} stopped working under {model}: {' '.join(str(error).split())[:400]}",
                "Nothing computed so far is lost: see that `nvidia-smi` shows the GPU, then run the same command.",
            ) from error
        raise


def release(device: str, *closed: ref[Any]) -> None:
    """Give the memory of what nobody refers to any more back to the device.

    With `closed` models garbage is collected only if one of them is still there: to look through all objects takes a
    quarter of a second, and most models are gone with their last reference.
    """
    if not closed or any(model() is not None for model in closed):
        gc.collect()
    if device.startswith("cuda"):
        import torch

        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # a GPU that is gone: its memory is too, and the cause has been raised
            if not api.is_device_lost(error):
                raise
