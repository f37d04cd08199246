"""Settings of how a model's weights lie on a device, shared by the backends on transformers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from dnd import api
from dnd_hf import fitting


class WeightsConfig(api.Config):
    """Base of the settings of a backend that loads one large model of transformers."""

    unkeyed: ClassVar[frozenset[str]] = api.Config.unkeyed | {"offload"}
    batch_size: int | Literal["auto"] = "auto"
    """Items in one forward pass; "auto" is found by trying while the model loads. Fewer once the device's memory
    runs out."""
    dtype: fitting.Dtype = "auto"
    """ "auto" is float32 on the CPU; on CUDA bfloat16, or float16 where the GPU has no bfloat16."""
    quantization: fitting.Quantization = "auto"
    """Weights packed by bitsandbytes; "auto" is the least that fits the GPU's free memory, and none on a CPU."""
    offload: Literal["none", "cpu"] = "none"
    """ "cpu" keeps the layers that do not fit on the GPU in the machine's memory: the same answers, slowly.
    Nothing on a CPU."""
    compile: bool = False
    """Compile the language model with torch.compile: minutes at first, then faster. Rounds differently."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        fitting.check_settings(self.batch_size, self.quantization, self.offload, self.compile)
        return self
