"""The generator "sdxl": Stable Diffusion XL and its few-step relatives, through diffusers."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from dnd import api
from dnd_diffusers.build import Part
from dnd_diffusers.generator import DiffusersGenerator
from dnd_sdxl.config import SdxlConfig
from dnd_sdxl.unet import is_lone, lone_unet

__all__ = ["SdxlConfig", "SdxlGenerator"]


class SdxlGenerator(DiffusersGenerator):
    """Stable Diffusion XL and its few-step relatives, with a UNet or a VAE of another model's where one is named."""

    name = "sdxl"
    Config = SdxlConfig
    config: SdxlConfig
    what = "an SDXL"
    kinds = ("StableDiffusionXLPipeline",)
    finite = 'in float16, set the generator\'s vae to "sdxl-vae-fp16-fix" or its dtype to "bfloat16"'

    @cached_property
    def _dtype(self) -> str:
        if self.config.dtype != "auto":
            return self.config.dtype
        return "float16" if self.runtime.device.startswith("cuda") else "float32"

    def _parts(self) -> dict[str, Part]:
        parts, weights = super()._parts(), self.runtime.weights
        if self.config.vae is not None:
            parts["vae"] = Part(self.config.vae, weights(self.config.vae), "diffusers", "AutoencoderKL")
        if self.config.unet is not None:
            folder = weights(self.config.unet)
            like = weights(self.config.model) / "unet" if is_lone(folder) else None
            parts["unet"] = Part(self.config.unet, folder, "diffusers", "UNet2DConditionModel", like=like)
        return parts

    def _load_part(self, place: str, part: Part) -> Any:
        if part.like is not None:
            return lone_unet(part, self._dtype, self.config.quantization)
        return super()._load_part(place, part)


@api.hookimpl
def register_generators() -> list[type[api.Generator]]:
    return [SdxlGenerator]
