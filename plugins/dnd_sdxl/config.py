"""Settings of the generator "sdxl"."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from dnd import api
from dnd_hf import precision, settings


class SdxlConfig(api.Config):
    """Settings of the generator "sdxl"."""

    unkeyed: ClassVar[frozenset[str]] = api.Config.unkeyed | {"offload"}
    model: api.ModelName = "sdxl-base-1.0"
    """A `StableDiffusionXLPipeline`: SDXL, Turbo, Lightning, LCM or a fine-tuned one."""
    vae: api.ModelName | None = None
    """An `AutoencoderKL` in place of the checkpoint's own, such as "sdxl-vae-fp16-fix"."""
    unet: api.ModelName | None = None
    """A UNet in place of the checkpoint's own, as Lightning and LCM are given away: a folder with a config.json, or
    with nothing but one safetensors file that fits the checkpoint's own."""
    steps: int = Field(25, ge=1)
    """Denoising steps; 1-4 for Turbo, the number that it was distilled for for Lightning."""
    guidance: float = Field(5.0, ge=0)
    """Classifier-free guidance; 0 (or anything up to 1) is none, half the work, and what Turbo and Lightning want."""
    scheduler: Literal["default", "dpm++", "dpm++-karras", "euler", "euler-a", "ddim", "unipc", "lcm"] = "default"
    """ "default" is the checkpoint's own; "euler" for Lightning, "lcm" for LCM."""
    timestep_spacing: Literal["default", "leading", "trailing", "linspace"] = "default"
    """Which of the timesteps the few steps take; "trailing" begins with pure noise, which Lightning needs."""
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels; None is what the checkpoint was trained on."""
    height: int | None = Field(None, ge=8, multiple_of=8)
    """As `width`."""
    prompt: str = "a photo of {concept}"
    """What the image is to show; {concept} stands for the candidate."""
    negative_prompt: str | None = None
    """What the images should not look like; needs guidance."""
    batch_size: int | Literal["auto"] = "auto"
    """Images at a time on a GPU; "auto" is found by trying while the model loads. Fewer once its memory runs out."""
    dtype: precision.Dtype = "auto"
    """ "auto" is float16 on CUDA, the half precision that SDXL is published in, and float32 on the CPU. A VAE that
    overflows in float16 and says so (`force_upcast`) decodes in float32; "sdxl-vae-fp16-fix" need not."""
    variant: Literal["fp16"] | None = None
    """Which weight files to read; None is the plain ones, or "fp16" where the folder has no others."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """The UNet's linear layers packed by bitsandbytes, on a GPU only; its convolutions stay as they are."""
    offload: Literal["auto", "none", "model", "sequential"] = "auto"
    """What lies in the machine's memory while it does not work: nothing, the parts that are not at work, or all but
    the layer at work (very slow). "auto" is the first that fits the GPU's free memory. The same images.
    Nothing on a CPU."""
    vae_slicing: Literal["auto", "on", "off"] = "auto"
    """Decode one image after another; "auto" is on on a GPU."""
    vae_tiling: Literal["auto", "on", "off"] = "auto"
    """Decode in overlapping tiles of half the side, whose seams are blended: other pixels. "auto" is on where a GPU
    has no memory to decode one image as a whole."""
    attention_slicing: bool = False
    """Attention in steps: for old GPUs without a fused attention kernel. Slower everywhere else."""
    compile: bool = False
    """Compile the UNet with torch.compile: minutes at first, then faster. Rounds differently."""

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, prompt: str) -> str:
        if "{concept}" not in prompt:
            raise ValueError("the prompt needs {concept} where the candidate goes")
        return prompt

    @model_validator(mode="after")
    def _sensible(self) -> SdxlConfig:
        moved = "none" if self.offload == "auto" else self.offload
        settings.check_settings(self.batch_size, self.quantization, moved, self.compile)
        return self
