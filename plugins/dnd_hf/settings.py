"""Settings of how a model's weights lie on a device, shared by the backends on transformers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from dnd import api
from dnd_hf.precision import Dtype, Quantization


class WeightsConfig(api.Config):
    """Base of the settings of a backend that loads one large model of transformers."""

    unkeyed: ClassVar[frozenset[str]] = api.Config.unkeyed | {"offload"}
    batch_size: int | Literal["auto"] = "auto"
    """Items in one forward pass; "auto" is found by trying while the model loads. Fewer once the device's memory
    runs out."""
    dtype: Dtype = "auto"
    """ "auto" is float32 on the CPU; on CUDA bfloat16, or float16 where the GPU has no bfloat16."""
    quantization: Quantization = "auto"
    """Weights packed by bitsandbytes; "auto" is the least that fits the GPU's free memory, and none on a CPU."""
    offload: Literal["none", "cpu"] = "none"
    """ "cpu" keeps the layers that do not fit on the GPU in the machine's memory: the same answers, slowly.
    Nothing on a CPU."""
    compile: bool = False
    """Compile the language model with torch.compile: minutes at first, then faster. Rounds differently."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        check_settings(self.batch_size, self.quantization, self.offload, self.compile)
        return self


def check_settings(batch_size: int | str, quantization: str, offload: str, compiled: bool) -> None:
    """ValueError for what does not go together."""
    if isinstance(batch_size, int) and batch_size < 1:
        raise ValueError("batch_size is 1 or more, or auto")
    if offload != "none" and quantization in ("8bit", "4bit"):
        raise ValueError(f"offload {offload!r} does not go with quantization {quantization!r}")
    if offload != "none" and compiled:
        raise ValueError("compile does not go with offload")
