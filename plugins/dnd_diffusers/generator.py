"""Any text-to-image pipeline as a generator: where it lies, batches, seeds, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ref

from dnd import api
from dnd_diffusers.build import Part, assemble, denoiser, draw_in_float32, find_parts, load_part
from dnd_diffusers.config import DiffusersConfig
from dnd_diffusers.offload import Placement, choose, expected, image_size, place
from dnd_diffusers.prompts import embed_once
from dnd_hf import batches, checks, devices, loading, precision
from dnd_hf.batches import Batches

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

SMALL = 50_000_000
"""A denoiser of fewer parameters is run on a CPU many images at a time."""
GROUP = 16
"""Images that a small denoiser draws together on a CPU, never more or fewer: rounding depends on the batch's shape."""
AUTO = {"cpu": GROUP, "cuda": 16}
"""Images at a time where the batch size is "auto": on a GPU at most, and then what its memory allows."""
SWITCHES = ("use_resolution_binning", "clean_caption")
"""Of some pipelines: to make another size than was asked for and resize it, and to rewrite the prompt where a certain
package is installed."""
ADVICE = (
    'set the generator\'s offload to "model" or "sequential", its vae_tiling to "on", or its width and height lower'
)


class DiffusersGenerator(api.Generator):
    """Any text-to-image pipeline of diffusers: Stable Diffusion 1 to 3.5, SDXL, PixArt, Sana, FLUX and others."""

    name = "diffusers"
    requires = ("diffusers", "transformers", "accelerate")
    environment: ClassVar[dict[str, str]] = {"DIFFUSERS_VERBOSITY": "error"}
    Config = DiffusersConfig
    config: DiffusersConfig
    what: ClassVar[str] = "a text-to-image pipeline"
    kinds: ClassVar[tuple[str, ...]] = ()
    """The pipelines that it takes; none for all."""
    finite = 'in float16, set the generator\'s dtype to "bfloat16"'
    """What helps where numbers overflow."""

    def __init__(self, config: DiffusersConfig, runtime: api.Runtime) -> None:
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
        return expected(self.config, self._parts(), self.runtime.device, self._dtype, self._placement)

    def image_size(self) -> tuple[int, int]:
        if self.config.width and self.config.height:  # known without the model
            return self.config.width, self.config.height
        return image_size(self.config, self._parts())

    @cached_property
    def _dtype(self) -> str:
        return precision.dtype_name(self.config.dtype, self.runtime.device)

    @cached_property
    def _placement(self) -> Placement:
        """Kept, because the free memory that decides it changes."""
        return choose(self.config, self._parts(), self.runtime.device, self._dtype)

    def _parts(self) -> dict[str, Part]:
        config = self.config
        return find_parts(config.model, self.runtime.weights(config.model), config.variant)

    def _load_part(self, place: str, part: Part) -> Any:
        packed = self.config.quantization if place == denoiser(self._parts()) else "none"
        return load_part(part, self._dtype, packed)

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable pipeline, DeviceError where the device has too little
        memory."""
        if self._pipeline is not None:
            return
        config, device, folder = self.config, self.runtime.device, self.runtime.weights(self.config.model)
        if self.kinds:
            checks.check_architecture(folder / "model_index.json", config.model, *self.kinds, key="_class_name")
        with devices.device_errors(config.model, device, ADVICE):
            loaded = {place: self._load_part(place, part) for place, part in self._parts().items()}
            self._pipeline = assemble(config, folder, loaded, self.what)
            draw_in_float32(self._pipeline)
            embed_once(self._pipeline)
            place(self._pipeline, self._placement, device)
            if config.batch_size == "auto":
                self.batch_size = self._batches.size = batches.largest_batch(self._try, self.batch_size, device)
        core = getattr(self._pipeline, denoiser(loaded))
        if config.compile:
            loading.compile_in_place(core)
        if device == "cpu":
            self._batches.size = GROUP if core.num_parameters() < SMALL else 1

    def _try(self, size: int) -> None:
        """A batch of this size in as few steps as there can be: each takes the same memory."""
        self._draw([api.ImageRequest("thing", 0)] * size, steps=min(2, self.config.steps or 2))

    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image]:
        """One RGB image per request. Exact on a CPU whatever the batch; on a GPU up to rounding of another batch size.

        Raises ItemError where the model's numbers overflow (float16 and a model that was not made for it).
        """
        if self._pipeline is None:
            raise RuntimeError("generate() before load()")
        with devices.device_errors(f"{self.config.model}, one image at a time,", self.runtime.device, ADVICE):
            return self._batches.map(self._draw, requests)

    @property
    def _knows(self) -> Mapping[str, Any]:
        """The pipeline's own settings."""
        return signature(type(self._pipeline).__call__).parameters

    def _draw(self, requests: Sequence[api.ImageRequest], *, steps: int | None = None) -> list[Image]:
        import torch
        from PIL import Image

        config = self.config
        width, height = self.image_size()
        wanted = {
            "prompt": [config.prompt.replace("{concept}", request.concept) for request in requests],
            "negative_prompt": None if config.negative_prompt is None else [config.negative_prompt] * len(requests),
            "num_inference_steps": steps or config.steps,
            "guidance_scale": config.guidance,
        }
        pixels: torch.Tensor = self._pipeline(  # (B, 3, H, W) in 0..1
            **{name: value for name, value in wanted.items() if value is not None},
            **{switch: False for switch in SWITCHES if switch in self._knows},
            width=width,
            height=height,
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            output_type="pt",
        ).images
        broken = [r.concept for r, image in zip(requests, pixels, strict=True) if not bool(image.isfinite().all())]
        if broken:
            raise api.ItemError(
                f"{config.model} gave no finite pixels for {broken[0]!r}; try another dtype or vae", self.finite
            )
        rounded = pixels.float().mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(image) for image in rounded]

    def close(self) -> None:
        held, self._pipeline = self._pipeline, None
        if held is not None:
            for name in ("prepare_latents", "encode_prompt"):  # they refer to the pipeline
                held.__dict__.pop(name, None)
            held.remove_all_hooks()  # accelerate's hold each other's models
            parts = [ref(part) for part in held.components.values() if hasattr(part, "parameters")]
            del held
            devices.release(self.runtime.device, *parts)
