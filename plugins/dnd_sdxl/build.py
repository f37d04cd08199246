"""From a folder to a pipeline: its parts, their number format, the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dnd import api
from dnd_hf import fitting
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
_FAULTS = (OSError, ValueError, KeyError, TypeError)


def build(config: SdxlConfig, weights: Callable[[str], Path], dtype: str) -> Any:
    """The pipeline in the CPU's memory. Raises ModelError where a folder holds no usable part."""
    import diffusers

    folder = weights(config.model)
    fitting.check_architecture(folder / "model_index.json", config.model, "StableDiffusionXLPipeline", "_class_name")
    options: dict[str, Any] = {"dtype": fitting.torch_dtype(dtype), "local_files_only": True, "use_safetensors": True}
    variant = config.variant or fp16_only(folder)
    with fitting.quiet("transformers", "diffusers"):
        parts = {}
        if config.vae is not None:
            parts["vae"] = _part("AutoencoderKL", config.vae, weights(config.vae), options)
        if config.unet is not None or config.quantization != "none":
            parts["unet"] = _unet(config, weights, variant, options, dtype)
        try:
            pipeline: Any = diffusers.StableDiffusionXLPipeline.from_pretrained(  # type: ignore[no-untyped-call]
                folder, variant=variant, add_watermarker=False, **parts, **options
            )
        except _FAULTS as error:
            raise api.ModelError(
                f"{config.model!r} in {folder} does not load as an SDXL: {error}",
                "the folder needs model_index.json and its parts with safetensors weights",
            ) from error
    kind, changes = SCHEDULERS.get(config.scheduler, (type(pipeline.scheduler).__name__, {}))
    if config.timestep_spacing != "default":
        changes = changes | {"timestep_spacing": config.timestep_spacing}
    if changes or config.scheduler != "default":
        pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


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
    marked = [file for file in files if ".fp16" in file.name]
    return marked if variant and marked else [file for file in files if file not in marked] or files


def fp16_only(folder: Path) -> str | None:
    """ "fp16" for a folder whose UNet has those files only."""
    files = [file.name for file in (folder / "unet").glob("*.safetensors")]
    return "fp16" if files and all(".fp16." in name for name in files) else None


def _part(kind: str, name: str, folder: Path, options: dict[str, Any]) -> Any:
    import diffusers

    try:
        return getattr(diffusers, kind).from_pretrained(folder, **options)
    except _FAULTS as error:
        raise api.ModelError(f"{name!r} in {folder} does not load as a {kind}: {error}") from error


def _unet(
    config: SdxlConfig, weights: Callable[[str], Path], variant: str | None, options: dict[str, Any], dtype: str
) -> Any:
    from diffusers import BitsAndBytesConfig

    name = config.unet or config.model
    folder = weights(name) if config.unet else weights(name) / "unet"
    lone = config.unet is not None and not (folder / "config.json").is_file()
    if config.quantization == "none":
        if lone:
            return _lone_unet(name, folder, weights(config.model) / "unet", options)
        return _part("UNet2DConditionModel", name, folder, options)
    if lone:
        raise api.UsageError(
            f"the UNet {name!r} is a single file, which cannot be packed", 'set the generator\'s quantization to "none"'
        )
    import torch

    if not torch.cuda.is_available():
        raise api.UsageError("a UNet can be packed on a GPU only", 'set the generator\'s quantization to "none"')
    packed = options | {"quantization_config": fitting.packing(config.quantization, dtype, BitsAndBytesConfig)}
    unet = _part("UNet2DConditionModel", name, folder, packed | ({} if config.unet else {"variant": variant}))
    if config.quantization == "4bit":
        fitting.check_packed(unet, name)
    return unet


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
