"""From a folder to a pipeline: its parts, their number format, the scheduler."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from dnd import api
from dnd_diffusers.config import DiffusersConfig
from dnd_hf import checks, loading, precision
from dnd_hf.loading import load_errors, load_whole

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
NEEDS = "model_index.json, its parts"
DENOISERS = ("unet", "transformer")
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that make no image. A safety checker paints some black, by which a candidate would then be judged."""
_OPTIONAL = ("text_encoder_", "tokenizer_")
"""Some checkpoints come without their third text encoder, the largest."""
_SWITCHES = ("requires_safety_checker", "add_watermarker")
"""What a pipeline is made without."""
_FP16 = re.compile(r"\.fp16[.-]")


@dataclass(frozen=True)
class Part:
    """What has weights."""

    model: str
    """The name of its model in models.lock, for messages."""
    folder: Path
    library: str
    kind: str
    """Its class in that library."""
    variant: str | None = None
    like: Path | None = None
    """The folder of its config.json, where its own has none."""

    def files(self) -> list[Path]:
        """The safetensors files that are read."""
        files = sorted(self.folder.glob("*.safetensors"))
        marked = [file for file in files if _FP16.search(file.name)]
        return marked if self.variant and marked else [file for file in files if file not in marked] or files

    def settings(self) -> dict[str, Any]:
        file = (self.like or self.folder) / "config.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise api.ModelError(f"cannot read {file}: {error}") from error
        return found


def find_parts(name: str, folder: Path, variant: str | None) -> dict[str, Part]:
    """By its name in the pipeline, as model_index.json says. ModelError where that is not to be read."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        listed = {part: said for part, said in index.items() if isinstance(said, list) and len(said) == 2}
    except (OSError, ValueError, AttributeError) as error:
        raise api.ModelError(f"{name!r} in {folder} has no model_index.json to be read: {error}") from error
    variant = variant or _fp16_only(folder)
    found = {}
    for part, (library, kind) in listed.items():
        if kind and part not in _LEFT_OUT and any((folder / part).glob("*.safetensors")):
            found[part] = Part(name, folder / part, library, kind, variant)
    return found


def _fp16_only(folder: Path) -> str | None:
    """ "fp16" for a folder whose denoiser has those files only."""
    files = [file.name for part in DENOISERS for file in (folder / part).glob("*.safetensors")]
    return "fp16" if files and all(map(_FP16.search, files)) else None


def denoiser(parts: Mapping[str, Any]) -> str:
    return next((name for name in DENOISERS if name in parts), DENOISERS[0])


def load_part(part: Part, dtype: str, quantization: str = "none") -> Any:
    """ModelError where its weights are not whole."""
    options: dict[str, Any] = {"dtype": precision.torch_dtype(dtype), "local_files_only": True}
    if quantization != "none":
        options["quantization_config"] = packing(quantization, dtype)
    if part.variant and any(_FP16.search(file.name) for file in part.files()):
        options["variant"] = part.variant
    with load_errors(part.model, part.folder, f"a {part.kind}", NEEDS):
        model = load_whole(_class(part), part.folder, part.model, **options)
    if quantization == "4bit":
        precision.check_packed(model, part.model)
    return model


def _class(part: Part) -> Any:
    """A class of transformers or diffusers, or one of diffusers' for a single pipeline; nothing from elsewhere."""
    import diffusers.pipelines

    known = part.library in ("transformers", "diffusers")
    module = import_module(part.library) if known else getattr(diffusers.pipelines, part.library, None)
    if (kind := getattr(module, part.kind, None)) is None:
        raise ValueError(f"{part.library} has no {part.kind}")
    return kind


def packing(quantization: str, dtype: str) -> Any:
    """UsageError without a GPU or bitsandbytes."""
    import torch
    from diffusers import BitsAndBytesConfig

    if not torch.cuda.is_available():
        hint = 'set the generator\'s quantization to "none"'
        raise api.UsageError("a denoiser can be packed on a GPU only", hint)
    return precision.packing(quantization, dtype, BitsAndBytesConfig)


def assemble(config: DiffusersConfig, folder: Path, parts: Mapping[str, Any], what: str) -> Any:
    """The pipeline of the folder with loaded parts, in the CPU's memory, and its scheduler as set. Raises ModelError
    where it is not `what`: no pipeline from text to an image."""
    import diffusers

    with load_errors(config.model, folder, what, NEEDS), loading.quiet("transformers", "diffusers"):
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        name = index["_class_name"]
        kind: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"diffusers has no pipeline {name}")
        asks, takes = signature(kind.__call__).parameters, signature(kind.__init__).parameters
        if not {"prompt", "num_inference_steps", "height", "width"} <= set(asks) or "image" in asks:
            raise ValueError(f"a {name} does not make images from text alone")
        absent = [part for part in takes if part.startswith(_OPTIONAL) and not any(index.get(part) or ())]
        given: dict[str, Any] = {part: None for part in (*_LEFT_OUT, *absent) if part in takes}
        given |= {switch: False for switch in _SWITCHES if switch in takes}
        pipeline: Any = kind.from_pretrained(folder, local_files_only=True, **given, **parts)
    for part in parts:
        if part.startswith("text_encoder"):
            tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
            checks.check_tokenizer(tokenizer, parts[part], config.model)
    schedule(pipeline, config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def schedule(pipeline: Any, config: DiffusersConfig) -> None:
    """UsageError for a scheduler of another kind than the model's: one that follows a flow has its own."""
    import diffusers

    kind, changes = SCHEDULERS.get(config.scheduler, (type(pipeline.scheduler).__name__, {}))
    if config.timestep_spacing != "default":
        changes = changes | {"timestep_spacing": config.timestep_spacing}
    if not changes and config.scheduler == "default":
        return
    if "Flow" in type(pipeline.scheduler).__name__ or "flow" in str(pipeline.scheduler.config.get("prediction_type")):
        raise api.UsageError(
            f"{config.model} follows a flow, for which {config.scheduler!r} was not made",
            'leave the generator\'s scheduler and timestep_spacing at "default"',
        )
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **changes)


def draw_in_float32(pipeline: Any) -> None:
    """Have the noise where denoising starts drawn in float32 and rounded: in half precision torch draws other numbers
    from the same seed, and the image would depend on the dtype."""
    import torch

    prepare = pipeline.prepare_latents

    def prepared(*args: Any, **named: Any) -> Any:
        given = [*args, *named.values()]
        dtype = next((one for one in given if isinstance(one, torch.dtype)), torch.float32)
        wide = [torch.float32 if isinstance(one, torch.dtype) else one for one in args]
        found = prepare(*wide, **{k: torch.float32 if isinstance(v, torch.dtype) else v for k, v in named.items()})
        return tuple(one.to(dtype) for one in found) if isinstance(found, tuple) else found.to(dtype)

    pipeline.prepare_latents = prepared
