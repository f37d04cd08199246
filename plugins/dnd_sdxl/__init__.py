"""The generator "sdxl": Stable Diffusion XL and its few-step relatives, through diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from dnd import api
from dnd_hf import batches, devices, loading, precision
from dnd_hf.batches import Batches
from dnd_sdxl.build import build
from dnd_sdxl.config import SdxlConfig
from dnd_sdxl.offload import Placement, choose, expected, image_size, place

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

__all__ = ["SdxlConfig", "SdxlGenerator"]

SMALL = 50_000_000
"""A UNet of fewer parameters is run on a CPU many images at a time."""
GROUP = 16
"""Images that a small UNet draws together on a CPU, never more or fewer: rounding depends on the batch's shape."""
AUTO = {"cpu": GROUP, "cuda": 16}
"""Images at a time where the batch size is "auto": on a GPU at most, and then what its memory allows."""
ADVICE = (
    'set the generator\'s offload to "model" or "sequential", its vae_tiling to "on", or its width and height lower'
)


class SdxlGenerator(api.Generator):
    """Stable Diffusion XL and its few-step relatives, through diffusers."""

    name = "sdxl"
    requires = ("diffusers", "transformers", "accelerate")
    environment: ClassVar[dict[str, str]] = {"DIFFUSERS_VERBOSITY": "error"}
    Config = SdxlConfig
    config: SdxlConfig

    def __init__(self, config: SdxlConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = batches.batch_limit(config.batch_size, AUTO, runtime.device)
        self._pipeline: Any = None
        # Always the same shape: at another one the arithmetic rounds differently, and so would the image.
        self._batches = Batches(self.batch_size, runtime.device, fill=True)

    def chosen(self) -> Mapping[str, Any]:
        placed = self._placement
        return {
            "dtype": self._dtype,
            "offload": placed.offload,
            "vae_slicing": "on" if placed.slicing else "off",
            "vae_tiling": "on" if placed.tiling else "off",
            "batch_size": self._batches.size,
        }

    def memory(self) -> int:
        return expected(self.config, self.runtime, self._dtype, self._placement)

    def image_size(self) -> tuple[int, int]:
        return image_size(self.config, self.runtime)

    @property
    def _dtype(self) -> str:
        if self.config.dtype != "auto":
            return self.config.dtype
        return "float16" if self.runtime.device.startswith("cuda") else "float32"

    @cached_property
    def _placement(self) -> Placement:
        """Kept, because the free memory that decides it changes."""
        return choose(self.config, self.runtime, self._dtype)

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable SDXL, DeviceError where the device has too little
        memory."""
        if self._pipeline is not None:
            return
        config, device, placement = self.config, self.runtime.device, self._placement
        with devices.device_errors(config.model, device, ADVICE):
            self._pipeline = build(config, self.runtime.weights, self._dtype)
            place(self._pipeline, placement, device)
            if config.batch_size == "auto":
                self.batch_size = self._batches.size = batches.largest_batch(self._try, self.batch_size, device)
        if config.compile:
            loading.compile_in_place(self._pipeline.unet)
        if device == "cpu":
            self._batches.size = GROUP if self._pipeline.unet.num_parameters() < SMALL else 1

    def _try(self, size: int) -> None:
        """A batch of this size in as few steps as there can be: each takes the same memory."""
        self._draw([api.ImageRequest("thing", 0)] * size, steps=min(2, self.config.steps))

    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image]:
        """One RGB image per request. Exact on a CPU whatever the batch; on a GPU up to rounding of another batch size.

        Raises ItemError where the model's numbers overflow (float16 and a VAE that was not made for it).
        """
        if self._pipeline is None:
            raise RuntimeError("generate() before load()")
        with devices.device_errors(f"{self.config.model}, one image at a time,", self.runtime.device, ADVICE):
            return self._batches.map(self._draw, requests)

    def _draw(self, requests: Sequence[api.ImageRequest], *, steps: int | None = None) -> list[Image]:
        import torch
        from PIL import Image

        config = self.config
        prompts = [config.prompt.replace("{concept}", request.concept) for request in requests]
        sources = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        # (B, 3, H, W) in 0..1
        pixels: torch.Tensor = self._pipeline(
            prompt=prompts,
            negative_prompt=None if config.negative_prompt is None else [config.negative_prompt] * len(prompts),
            num_inference_steps=steps or config.steps,
            guidance_scale=config.guidance,
            width=config.width,
            height=config.height,
            generator=sources,
            latents=self._noise(sources),
            output_type="pt",
        ).images
        broken = [r.concept for r, image in zip(requests, pixels, strict=True) if not bool(image.isfinite().all())]
        if broken:
            raise api.ItemError(
                f"{config.model} gave no finite pixels for {broken[0]!r}; try another dtype or vae",
                'in float16, set the generator\'s vae to "sdxl-vae-fp16-fix" or its dtype to "bfloat16"',
            )
        rounded = pixels.float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in rounded]

    def _noise(self, sources: Sequence[torch.Generator]) -> torch.Tensor:
        """(B, C, h, w), where denoising starts. Drawn on the CPU in float32, so that it is the same on every device and
        in every dtype, but for rounding: in half precision torch draws other numbers from the same seed."""
        import torch

        unet, scale = self._pipeline.unet, self._pipeline.vae_scale_factor
        height, width = (
            (side or unet.config.sample_size * scale) // scale for side in (self.config.height, self.config.width)
        )
        shape = (1, unet.config.in_channels, height, width)
        noise = torch.cat([torch.randn(shape, generator=source) for source in sources])
        return noise.to(precision.torch_dtype(self._dtype))

    def close(self) -> None:
        held, self._pipeline = self._pipeline, None
        if held is not None:
            held.remove_all_hooks()  # accelerate's hold each other's models
            del held
            devices.release(self.runtime.device)


@api.hookimpl
def register_generators() -> list[type[api.Generator]]:
    return [SdxlGenerator]
