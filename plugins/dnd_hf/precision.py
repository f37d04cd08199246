"""Number formats and packed weights, and what they take of a device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dnd import api
from dnd_hf import devices, sizes

if TYPE_CHECKING:
    import torch


Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["auto", "none", "8bit", "4bit"]


def dtype_name(setting: str, device: str) -> str:
    """ "auto" is float32 on a CPU; on CUDA bfloat16, or float16 where the GPU has no bfloat16 of its own."""
    if setting != "auto":
        return setting
    if not device.startswith("cuda"):
        return "float32"
    import torch

    with torch.cuda.device(device):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def choose_quantization(setting: str, files: Callable[[], list[Path]], dtype: str, device: str) -> str:
    """ "auto" is the least packing whose weights fit the free memory of a GPU, and "none" on a CPU."""
    if setting != "auto":
        return setting
    free = devices.free_memory(device)
    for kind in ("none", "8bit"):
        if free is None or needed(sizes.weight_bytes(files(), dtype, kind)) <= free:
            return kind
    return "4bit"


def precision(config: Any, runtime: api.Runtime) -> tuple[str, str]:
    """dtype and quantization of settings `model`, `dtype`, `quantization` and `offload`, "auto" resolved by what the
    device has free; weights that are offloaded are not packed."""

    def files() -> list[Path]:
        return sorted(runtime.weights(config.model).glob("*.safetensors"))

    dtype = dtype_name(config.dtype, runtime.device)
    if config.offload != "none":
        return dtype, "none"
    return dtype, choose_quantization(config.quantization, files, dtype, runtime.device)


def needed(weights: int) -> int:
    """Bytes on a GPU, with what the work takes for one item at a time: an estimate."""
    return weights + sizes.work_beside(weights, "cuda")


def memory(config: Any, runtime: api.Runtime, dtype: str, quantization: str) -> int:
    """Bytes that a backend with these settings needs on its device for one item at a time: an estimate. Weights that
    are offloaded need no more than there is."""
    files = sorted(runtime.weights(config.model).glob("*.safetensors"))
    moved = config.offload != "none" and runtime.device != "cpu"
    weights = 0 if moved else sizes.weight_bytes(files, dtype, quantization)
    return weights + sizes.work_beside(weights, runtime.device)


def packing(kind: str, dtype: str, settings: Any) -> Any:
    """`settings` is the BitsAndBytesConfig of transformers or of diffusers. UsageError without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise api.UsageError(
            f"quantization {kind!r} needs bitsandbytes",
            'pip install "dnd-describe[quant]", or set quantization to "none"',
        )
    if kind == "8bit":  # a line for every layer of every batch that is not in float16 would drown all others
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return settings(load_in_8bit=True)
    return settings(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch_dtype(dtype))


def check_packed(model: Any, name: str) -> None:
    """ModelError where 4-bit weights have a width that bitsandbytes cannot work with: it packs 64 in a row."""
    import bitsandbytes

    for place, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.in_features % 64:
            raise api.ModelError(
                f"{name!r} cannot be packed into 4 bits: {place} has {module.in_features} inputs, no multiple of 64",
                'set quantization to "8bit" or "none"',
            )
