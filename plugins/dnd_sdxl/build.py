"""From a folder to a pipeline: its parts, their number format, the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from dnd import api
from dnd_hf import loading, precision
from dnd_hf.loading import load_errors, load_whole
from dnd_sdxl.config import SdxlConfig

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
PARTS = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
"""What has weights: its library and its class."""
NEEDS = "model_index.json, its parts"


def build(config: SdxlConfig, weights: Callable[[str], Path], dtype: str) -> Any:
    """The pipeline in the CPU's memory. Raises ModelError where a folder holds no usable part."""
    import diffusers

    folder = weights(config.model)
    loading.check_architecture(
        folder / "model_index.json", config.model, "StableDiffusionXLPipeline", key="_class_name"
    )
    replaced = {"unet": config.unet, "vae": config.vae}
    parts = {
        part: _part(part, replaced.get(part), config, weights, dtype)
        for part in PARTS
        if replaced.get(part) or (folder / part).is_dir()
    }
    with load_errors(config.model, folder, "an SDXL", NEEDS), loading.quiet("transformers", "diffusers"):
        pipeline: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            folder, add_watermarker=False, local_files_only=True, **parts
        )
    kind, changes = SCHEDULERS.get(config.scheduler, (type(pipeline.scheduler).__name__, {}))
    if config.timestep_spacing != "default":
        changes = changes | {"timestep_spacing": config.timestep_spacing}
    if changes or config.scheduler != "default":
        pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _part(part: str, own: str | None, config: SdxlConfig, weights: Callable[[str], Path], dtype: str) -> Any:
    """A part of the checkpoint, or the model of its own that takes its place."""
    library, kind = PARTS[part]
    name = own or config.model
    folder = weights(name) if own else weights(name) / part
    lone = part == "unet" and own is not None and not (folder / "config.json").is_file()
    options: dict[str, Any] = {"dtype": precision.torch_dtype(dtype)}
    if part == "unet" and config.quantization != "none":
        options |= _packing(config, dtype, lone)
    if lone:
        return _lone_unet(name, folder, weights(config.model) / "unet", options)
    if own is None and _is_variant(folder, config.variant or fp16_only(weights(name))):
        options["variant"] = "fp16"
    with load_errors(name, folder, f"a {kind}", NEEDS):
        model = load_whole(getattr(import_module(library), kind), folder, name, local_files_only=True, **options)
    if part == "unet" and config.quantization == "4bit":
        precision.check_packed(model, name)
    return model


def _packing(config: SdxlConfig, dtype: str, lone: bool) -> dict[str, Any]:
    import torch
    from diffusers import BitsAndBytesConfig

    hint = 'set the generator\'s quantization to "none"'
    if lone:
        raise api.UsageError(f"the UNet {config.unet!r} is a single file, which cannot be packed", hint)
    if not torch.cuda.is_available():
        raise api.UsageError("a UNet can be packed on a GPU only", hint)
    return {"quantization_config": precision.packing(config.quantization, dtype, BitsAndBytesConfig)}


def weight_files(config: SdxlConfig, weights: Callable[[str], Path]) -> dict[str, list[Path]]:
    """The safetensors files that `build` reads, by part."""
    folder = weights(config.model)
    variant = config.variant or fp16_only(folder)
    found = {part.name: _chosen(part, variant) for part in folder.iterdir() if part.is_dir()}
    for part, name in (("vae", config.vae), ("unet", config.unet)):
        if name is not None:
            found[part] = _chosen(weights(name), None)
    return {part: files for part, files in found.items() if files}


def _chosen(folder: Path, variant: str | None) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    marked = [file for file in files if ".fp16." in file.name]
    return marked if _is_variant(folder, variant) else [file for file in files if file not in marked] or files


def _is_variant(folder: Path, variant: str | None) -> bool:
    """Whether the variant's files of a part are read: a part that has none of them, a VAE say, has its plain ones."""
    return variant is not None and any(folder.glob("*.fp16.safetensors"))


def fp16_only(folder: Path) -> str | None:
    """ "fp16" for a folder whose UNet has those files only."""
    files = [file.name for file in (folder / "unet").glob("*.safetensors")]
    return "fp16" if files and all(".fp16." in name for name in files) else None


def _lone_unet(name: str, folder: Path, like: Path, options: dict[str, Any]) -> Any:
    """A UNet of the architecture of `like` from a folder's only safetensors file."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise api.ModelError(f"{name!r} in {folder} is no UNet: a config.json, or one safetensors file, is wanted")
    unet: Any = UNet2DConditionModel.from_config(str(like / "config.json"))  # type: ignore[no-untyped-call]
    try:
        unet.load_state_dict(load_file(files[0]))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise api.ModelError(
            f"{files[0]} is no UNet of the architecture of the model that it is for: {first[0].strip()}"
        ) from error
    return unet.to(options["dtype"]).eval()
