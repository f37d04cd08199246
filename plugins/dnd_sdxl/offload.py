"""Where a pipeline's parts lie and in how many pieces they work, by the free memory of the device."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnd import api
from dnd_hf import devices, precision
from dnd_hf.sizes import weight_bytes, work_beside
from dnd_sdxl.build import weight_files
from dnd_sdxl.config import SdxlConfig

_MAPS = 6
"""Feature maps at full size that a decoder holds at its peak: 4.8 measured, SDXL's at 1024 x 1024 in float16, and some
for the allocator's gaps."""


@dataclass(frozen=True)
class Placement:
    offload: str
    """ "none", "model" or "sequential"."""
    slicing: bool
    tiling: bool
    """Both of the VAE."""
    attention: bool
    """Attention in slices."""


def choose(config: SdxlConfig, runtime: api.Runtime, dtype: str) -> Placement:
    """What the automatic settings come to now, by the headers of the weights. On a CPU nothing is offloaded."""
    free = devices.free_memory(runtime.device)
    slicing = config.vae_slicing == "on" or (config.vae_slicing == "auto" and free is not None)
    tiling = config.vae_tiling == "on"
    if free is None:
        return Placement("none", slicing, tiling, config.attention_slicing)
    offload: str = config.offload
    if "auto" in (offload, config.vae_tiling):
        sizes = part_bytes(config, runtime, dtype)
        at_once = {"none": sum(sizes.values()), "model": max(sizes.values())}
        if offload == "auto" and (config.compile or config.quantization != "none"):
            offload = "none"
        elif offload == "auto":
            offload = next((how for how, size in at_once.items() if precision.needed(size) <= free), "sequential")
        held = at_once["none"] if offload == "none" else sizes["vae"]
        tiling = tiling or (config.vae_tiling == "auto" and held + decoding(config, runtime, dtype) > free)
    return Placement(offload, slicing, tiling, config.attention_slicing)


def part_bytes(config: SdxlConfig, runtime: api.Runtime, dtype: str) -> dict[str, int]:
    """What the weights of each part take on a GPU, by the headers of their files."""
    return {
        part: weight_bytes(files, dtype, config.quantization if part == "unet" else "none")
        for part, files in weight_files(config, runtime.weights).items()
    }


def expected(config: SdxlConfig, runtime: api.Runtime, dtype: str, placement: Placement) -> int:
    """Bytes at the peak of one image: decoding it takes more than is usual for weights of that size."""
    sizes = part_bytes(config, runtime, dtype)
    held = {"none": sum(sizes.values()), "model": max(sizes.values())}.get(placement.offload, 0)
    work = decoding(config, runtime, dtype) // (4 if placement.tiling else 1)
    return held + max(work, work_beside(held, runtime.device))


def image_size(config: SdxlConfig, runtime: api.Runtime) -> tuple[int, int]:
    """(width, height): the settings, or what the checkpoint was trained on."""
    if config.width and config.height:
        return config.width, config.height
    side = _trained_side(config, runtime)
    return config.width or side, config.height or side


def _trained_side(config: SdxlConfig, runtime: api.Runtime) -> int:
    vae = _settings(runtime.weights(config.vae) if config.vae else runtime.weights(config.model) / "vae")
    unet = _settings(runtime.weights(config.model) / "unet")
    return int(unet.get("sample_size") or 128) * 2 ** (len(vae["block_out_channels"]) - 1)


def decoding(config: SdxlConfig, runtime: api.Runtime, dtype: str) -> int:
    """Bytes at the peak of decoding one image as a whole: an estimate."""
    vae = _settings(runtime.weights(config.vae) if config.vae else runtime.weights(config.model) / "vae")
    pixels = math.prod(image_size(config, runtime))
    upcast = dtype == "float16" and vae.get("force_upcast", True)
    width = max(vae["block_out_channels"][:2])  # of the maps at full size
    return int(_MAPS * width * pixels) * (4 if upcast or dtype == "float32" else 2)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        return {"block_out_channels": [128, 256, 512, 512], **found}
    except (OSError, ValueError) as error:
        raise api.ModelError(f"cannot read {folder / 'config.json'}: {error}") from error


def place(pipeline: Any, placement: Placement, device: str) -> None:
    """Put a pipeline that lies in the CPU's memory where it is to work."""
    if placement.attention:
        pipeline.enable_attention_slicing()
    vae = pipeline.vae
    if placement.slicing:
        vae.enable_slicing()
    if placement.tiling:
        vae.enable_tiling()
        # Half of the usual side, whatever the checkpoint says: SDXL's own tiles are as large as its images.
        vae.tile_latent_min_size = max(1, pipeline.unet.config.sample_size // 2)
        vae.tile_sample_min_size = vae.tile_latent_min_size * pipeline.vae_scale_factor
    if placement.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif placement.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
