"""The generator "sdxl": Stable Diffusion XL and its few-step relatives, through diffusers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from dnd import api

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

TEMPLATE = "a picture of {concept}"
"""Also the words that the microworld's generator was trained on."""
SMALL = 50_000_000
"""A UNet of fewer parameters is run on a CPU many images at a time."""
GROUP = 16
"""Images that a small UNet draws together on a CPU, never more or fewer: rounding depends on the batch's shape."""

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


class SdxlConfig(api.Config):
    """Settings of the generator "sdxl"."""

    model: api.ModelName = "sdxl-base-1.0"
    """A `StableDiffusionXLPipeline`: SDXL, Turbo, Lightning, LCM or a fine-tuned one."""
    vae: api.ModelName | None = None
    """An `AutoencoderKL` in place of the checkpoint's own, such as "sdxl-vae-fp16-fix"."""
    steps: int = Field(25, ge=1)
    """Denoising steps; 1-4 for Turbo and Lightning."""
    guidance: float = Field(5.0, ge=0)
    """Classifier-free guidance; 0 (or anything up to 1) is none, half the work, and what Turbo wants."""
    scheduler: Literal["default", "dpm++", "dpm++-karras", "euler", "euler-a", "ddim", "unipc", "lcm"] = "default"
    """ "default" is the checkpoint's own."""
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels; None is what the checkpoint was trained on."""
    height: int | None = Field(None, ge=8, multiple_of=8)
    """As `width`."""
    prompt: str = TEMPLATE
    """What is asked for; {concept} stands for the candidate."""
    negative_prompt: str | None = None
    """What the images should not look like; needs guidance."""
    batch_size: int = Field(16, ge=1)
    """Images at a time on a GPU; fewer once its memory has run out."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """ "auto" is float16 on CUDA, float32 on the CPU."""
    variant: Literal["fp16"] | None = None
    """Which weight files to read; None is the plain ones, or "fp16" where the folder has no others."""

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, prompt: str) -> str:
        if "{concept}" not in prompt:
            raise ValueError("the prompt needs {concept} where the candidate goes")
        return prompt


class SdxlGenerator(api.Generator):
    name = "sdxl"
    requires = ("diffusers", "transformers", "accelerate")
    Config = SdxlConfig
    config: SdxlConfig

    def __init__(self, config: SdxlConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size
        self._pipeline: Any = None
        self._generate: Callable[[Sequence[api.ImageRequest]], list[Image]] | None = None

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable SDXL."""
        if self._pipeline is not None:
            return
        import diffusers
        from accelerate.utils import find_executable_batch_size  # type: ignore[import-untyped]

        folder, config = self.runtime.weights(self.config.model), self.config
        options: dict[str, Any] = {"dtype": self._dtype(), "local_files_only": True, "use_safetensors": True}
        if config.vae is not None:
            options["vae"] = self._vae(config.vae, options)
        try:
            with _quiet():
                pipeline: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(  # type: ignore[no-untyped-call]
                    folder, variant=config.variant or _variant(folder), add_watermarker=False, **options
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise api.ModelError(
                f"{config.model!r} in {folder} does not load as an SDXL: {error}",
                "the folder needs model_index.json and its parts with safetensors weights",
            ) from error
        if config.scheduler != "default":
            kind, changes = _SCHEDULERS[config.scheduler]
            pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **changes)
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(self.runtime.device)
        if self.runtime.device == "cpu":
            rows = GROUP if pipeline.unet.num_parameters() < SMALL else 1
            self._generate = lambda requests: self._generate_by(rows, requests)
        else:  # remembers what fits: after an out-of-memory it starts from the smaller size for good
            self._generate = find_executable_batch_size(self._generate_by, starting_batch_size=config.batch_size)

    def _vae(self, name: str, options: dict[str, Any]) -> Any:
        from diffusers import AutoencoderKL

        folder = self.runtime.weights(name)
        try:
            with _quiet():
                return AutoencoderKL.from_pretrained(folder, **options)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise api.ModelError(f"{name!r} in {folder} does not load as an AutoencoderKL: {error}") from error

    def _dtype(self) -> torch.dtype:
        import torch

        named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        named["auto"] = torch.float16 if self.runtime.device.startswith("cuda") else torch.float32
        return named[self.config.dtype]

    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image]:
        """One RGB image per request. Exact on a CPU whatever the batch; on a GPU up to rounding of another batch size.

        Raises ItemError where the model's numbers overflow (float16 and a VAE that was not made for it).
        """
        if self._generate is None:
            raise RuntimeError("generate() before load()")
        try:
            return self._generate(requests) if requests else []
        except RuntimeError as error:
            if "No executable batch size" not in str(error):
                raise
            raise api.UsageError(
                f"{self.config.model} does not fit into the memory of {self.runtime.device}, one image at a time",
                "set the generator's dtype to float16 or its width and height lower, or choose a smaller model",
            ) from error

    def _generate_by(self, batch_size: int, requests: Sequence[api.ImageRequest]) -> list[Image]:
        images: list[Image] = []
        for at in range(0, len(requests), batch_size):
            part = list(requests[at : at + batch_size])
            # Always the same shape: at another one the arithmetic rounds differently, and so would the image.
            images += self._draw(part + part[-1:] * (batch_size - len(part)))[: len(part)]
        return images

    def _draw(self, requests: Sequence[api.ImageRequest]) -> list[Image]:
        import torch
        from PIL import Image

        config = self.config
        prompts = [config.prompt.replace("{concept}", request.concept) for request in requests]
        # (B, 3, H, W) in 0..1; the starting noise comes from the CPU, so that every device begins with the same
        pixels: torch.Tensor = self._pipeline(
            prompt=prompts,
            negative_prompt=None if config.negative_prompt is None else [config.negative_prompt] * len(prompts),
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            width=config.width,
            height=config.height,
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            output_type="pt",
        ).images
        broken = [r.concept for r, image in zip(requests, pixels, strict=True) if not bool(image.isfinite().all())]
        if broken:
            raise api.ItemError(f"{config.model} gave no finite pixels for {broken[0]!r}; try another dtype or vae")
        rounded = pixels.float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in rounded]

    def close(self) -> None:
        held, self._pipeline, self._generate = self._pipeline, None, None
        if held is None:
            return
        del held
        gc.collect()
        if self.runtime.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()


def _variant(folder: Path) -> str | None:
    """ "fp16" for a folder whose UNet has those files only."""
    files = [file.name for file in (folder / "unet").glob("*.safetensors")]
    return "fp16" if files and all(".fp16." in name for name in files) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars while diffusers and transformers load."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    shown = [log for log in (ours, theirs) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


@api.hookimpl
def register_generators() -> list[type[api.Generator]]:
    return [SdxlGenerator]
