"""What the weights of a model take on a device, from the headers of its safetensors files alone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dnd import api

_WORK_SHARE, _LEAST_WORK, _LEAST_WORK_ON_CPU = 0.25, 2 * 2**30, 512 * 2**20
_NOT_PACKED = re.compile(r"embed|lm_head|norm|shared|position|wte|wpe")
"""Matrices that quantization leaves as they are."""
_KEPT_WIDE = re.compile(r"(^|\.)(qformer|query_tokens|wo)\.|^query_tokens$")
"""BLIP-2's Q-Former and T5's last matrices: transformers packs them never, and keeps them in float32 where float16 is
asked for."""
PACKED = {"8bit": 1.0, "4bit": 0.5 + 4 / 64}
"""Bytes of a packed weight; 4-bit weights come with a float32 for every 64."""
_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}


@dataclass(frozen=True)
class Tensor:
    name: str
    count: int
    """Elements."""
    dims: int
    bytes_each: float
    is_float: bool


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
        raise api.ModelError(f"{file} is not a whole safetensors file: {error}") from error
    return found


def weight_bytes(files: Iterable[Path], dtype: str | None, quantization: str = "none") -> int:
    """`dtype` None is as they are stored; `quantization` a key of `PACKED`, or anything else for none."""
    tensors = [tensor for file in files for tensor in read_tensors(file)]
    return int(math.fsum(_bytes_of(tensor, dtype, PACKED.get(quantization)) for tensor in tensors))


def _bytes_of(tensor: Tensor, dtype: str | None, packed: float | None) -> float:
    if not tensor.is_float:
        return tensor.count * tensor.bytes_each
    if kept := _KEPT_WIDE.search(tensor.name):
        dtype = "float32" if dtype == "float16" else dtype
    if packed is not None and tensor.dims == 2 and not kept and not _NOT_PACKED.search(tensor.name):
        return tensor.count * packed
    return tensor.count * _BYTES.get(dtype or "", tensor.bytes_each)


def work_beside(weights: float, device: str) -> int:
    """Bytes that the work takes beside the weights for one item at a time: a rule of thumb."""
    return max(int(weights * _WORK_SHARE), _LEAST_WORK_ON_CPU if device == "cpu" else _LEAST_WORK)
