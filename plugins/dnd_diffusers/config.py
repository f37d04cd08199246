"""Settings of the generator "diffusers", of which "sdxl" has more."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from dnd import api
from dnd_hf import precision, settings


class DiffusersConfig(api.Config):
    """Settings of the generator "diffusers"."""

    unkeyed: ClassVar[frozenset[str]] = api.Config.unkeyed | {"offload"}
    model: api.ModelName = "stable-diffusion-v1-4"
    """A text-to-image pipeline as diffusers saves it: Stable Diffusion 1 to 3.5, PixArt, Sana, FLUX and others."""
    steps: int | None = Field(None, ge=1)
    """Denoising steps; None is the pipeline's own number. 1-4 for a distilled model."""
    guidance: float | None = Field(None, ge=0)
    """Classifier-free guidance; None is the pipeline's own. 0 for most distilled models (FLUX schnell, SDXL Turbo)."""
    scheduler: Literal["default", "dpm++", "dpm++-karras", "euler", "euler-a", "ddim", "unipc", "lcm"] = "default"
    """ "default" is the checkpoint's own, and the only choice for SD 3, FLUX and Sana; "euler" for Lightning, "lcm" for
    LCM."""
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
    """ "auto" is bfloat16 on CUDA, or float16 where the GPU has no bfloat16, and float32 on the CPU. FLUX, SD 3 and
    Sana may overflow in float16."""
    variant: Literal["fp16"] | None = None
    """Which weight files to read; None is the plain ones, or "fp16" where the folder has no others."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """The linear layers of the denoiser (UNet or transformer) packed by bitsandbytes, on a GPU only."""
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
    """Compile the denoiser with torch.compile: minutes at first, then faster. Rounds differently."""

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, prompt: str) -> str:
        if "{concept}" not in prompt:
            raise ValueError("the prompt needs {concept} where the candidate goes")
        return prompt

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        moved = "none" if self.offload == "auto" else self.offload
        settings.check_settings(self.batch_size, self.quantization, moved, self.compile)
        return self
