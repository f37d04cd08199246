"""Settings of the generator "sdxl"."""

from __future__ import annotations

from pydantic import Field, field_validator

from dnd import api
from dnd_diffusers.config import DiffusersConfig
from dnd_hf import precision


class SdxlConfig(DiffusersConfig):
    """Settings of the generator "sdxl"."""

    model: api.ModelName = "sdxl-base-1.0"
    """A `StableDiffusionXLPipeline`: SDXL, Turbo, Lightning, LCM or a fine-tuned one."""
    vae: api.ModelName | None = None
    """An `AutoencoderKL` in place of the checkpoint's own, such as "sdxl-vae-fp16-fix"; "none" for its own."""
    unet: api.ModelName | None = None
    """A UNet in place of the checkpoint's own, as Lightning and LCM are given away: a folder with a config.json, or
    with nothing but one safetensors file that fits the checkpoint's own; "none" for its own."""
    steps: int = Field(25, ge=1)
    """Denoising steps; 1-4 for Turbo, the number that it was distilled for for Lightning."""
    guidance: float = Field(5.0, ge=0)
    """Classifier-free guidance; 0 (or anything up to 1) is none, half the work, and what Turbo and Lightning want."""
    dtype: precision.Dtype = "auto"
    """ "auto" is float16 on CUDA, the half precision that SDXL is published in, and float32 on the CPU. A VAE that
    overflows in float16 and says so (`force_upcast`) decodes in float32; "sdxl-vae-fp16-fix" need not."""

    @field_validator("vae", "unet")
    @classmethod
    def _replaced(cls, name: str | None) -> str | None:
        """A run file over another one cannot leave out what that one has."""
        return None if name == "none" else name
