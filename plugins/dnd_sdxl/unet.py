"""A UNet that is given away by itself, as a single safetensors file: SDXL-Lightning's, for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnd import api
from dnd_diffusers.build import Part
from dnd_hf import precision


def is_lone(folder: Path) -> bool:
    return not (folder / "config.json").is_file()


def lone_unet(part: Part, dtype: str, quantization: str) -> Any:
    """A UNet of the architecture of `part.like` from a folder's only safetensors file."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    if quantization != "none":
        hint = 'set the generator\'s quantization to "none"'
        raise api.UsageError(f"the UNet {part.model!r} is a single file, which cannot be packed", hint)
    files = sorted(part.folder.glob("*.safetensors"))
    if len(files) != 1:
        where = f"{part.model!r} in {part.folder}"
        raise api.ModelError(f"{where} is no UNet: a config.json, or one safetensors file, is wanted")
    unet: Any = UNet2DConditionModel.from_config(part.settings())  # type: ignore[no-untyped-call]
    try:
        unet.load_state_dict(load_file(files[0]))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise api.ModelError(
            f"{files[0]} is no UNet of the architecture of the model that it is for: {first[0].strip()}"
        ) from error
    return unet.to(precision.torch_dtype(dtype)).eval()
