"""Where a pipeline's parts lie and in how many pieces they work, by the free memory of the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnd_diffusers.build import DENOISERS, Part, denoiser
from dnd_diffusers.config import DiffusersConfig
from dnd_hf import devices, precision
from dnd_hf.sizes import weight_bytes, work_beside

_MAPS = 6
"""Feature maps at full size that a decoder holds at its peak: 4.8 measured, SDXL's at 1024 x 1024 in float16, and some
for the allocator's gaps."""
_LATENT_SIDE = 128
"""Where a denoiser does not say it: FLUX's, for one."""


@dataclass(frozen=True)
class Placement:
    offload: str
    """ "none", "model" or "sequential"."""
    slicing: bool
    tiling: bool
    """Both of the VAE."""
    attention: bool
    """Attention in slices."""


def choose(config: DiffusersConfig, parts: Mapping[str, Part], device: str, dtype: str) -> Placement:
    """What the automatic settings come to now, by the headers of the weights. On a CPU nothing is offloaded."""
    free = devices.free_memory(device)
    slicing = config.vae_slicing == "on" or (config.vae_slicing == "auto" and free is not None)
    tiling = config.vae_tiling == "on"
    if free is None:
        return Placement("none", slicing, tiling, config.attention_slicing)
    offload: str = config.offload
    if "auto" in (offload, config.vae_tiling):
        sizes = part_bytes(config, parts, dtype)
        at_once = {"none": sum(sizes.values()), "model": max(sizes.values())}
        if offload == "auto" and (config.compile or config.quantization != "none"):
            offload = "none"
        elif offload == "auto":
            offload = next((how for how, size in at_once.items() if precision.needed(size) <= free), "sequential")
        held = at_once["none"] if offload == "none" else sizes["vae"]
        tiling = tiling or (config.vae_tiling == "auto" and held + decoding(config, parts, dtype) > free)
    return Placement(offload, slicing, tiling, config.attention_slicing)


def part_bytes(config: DiffusersConfig, parts: Mapping[str, Part], dtype: str) -> dict[str, int]:
    """What the weights of each part take on a GPU, by the headers of their files."""
    packed = denoiser(parts)
    return {
        place: weight_bytes(part.files(), dtype, config.quantization if place == packed else "none")
        for place, part in parts.items()
    }


def expected(config: DiffusersConfig, parts: Mapping[str, Part], device: str, dtype: str, placement: Placement) -> int:
    """Bytes at the peak of one image: decoding it takes more than is usual for weights of that size."""
    sizes = part_bytes(config, parts, dtype)
    held = {"none": sum(sizes.values()), "model": max(sizes.values(), default=0)}.get(placement.offload, 0)
    work = decoding(config, parts, dtype) // (4 if placement.tiling else 1)
    return held + max(work, work_beside(held, device))


def image_size(config: DiffusersConfig, parts: Mapping[str, Part]) -> tuple[int, int]:
    """(width, height): the settings, or what the checkpoint was trained on."""
    if config.width and config.height:
        return config.width, config.height
    core = parts[denoiser(parts)].settings().get("sample_size") if denoiser(parts) in parts else None
    side = int(core or _LATENT_SIDE) * 2 ** (len(_vae_widths(parts)) - 1)
    return config.width or side, config.height or side


def decoding(config: DiffusersConfig, parts: Mapping[str, Part], dtype: str) -> int:
    """Bytes at the peak of decoding one image as a whole: an estimate."""
    pixels = math.prod(image_size(config, parts))
    overflows = "vae" in parts and parts["vae"].settings().get("force_upcast", True)
    width = max(_vae_widths(parts)[:2])  # of the maps at full size
    return int(_MAPS * width * pixels) * (4 if dtype == "float32" or (dtype == "float16" and overflows) else 2)


def _vae_widths(parts: Mapping[str, Part]) -> Sequence[int]:
    """Of a decoder's blocks, those at full size first; each halves the side."""
    said = parts["vae"].settings() if "vae" in parts else {}
    return said.get("block_out_channels") or said.get("decoder_block_out_channels") or [128, 256, 512, 512]


def place(pipeline: Any, placement: Placement, device: str) -> None:
    """Put a pipeline that lies in the CPU's memory where it is to work."""
    if placement.attention:
        pipeline.enable_attention_slicing()
    vae = pipeline.vae
    if placement.slicing and hasattr(vae, "enable_slicing"):
        vae.enable_slicing()
    if placement.tiling and hasattr(vae, "enable_tiling"):
        vae.enable_tiling()
        core = next(getattr(pipeline, name) for name in DENOISERS if hasattr(pipeline, name))
        # Half of the usual side, whatever the checkpoint says: SDXL's own tiles are as large as its images.
        vae.tile_latent_min_size = max(1, (core.config.get("sample_size") or _LATENT_SIDE) // 2)
        vae.tile_sample_min_size = vae.tile_latent_min_size * pipeline.vae_scale_factor
    if placement.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif placement.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
