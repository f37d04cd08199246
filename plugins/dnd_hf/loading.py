"""Models from local folders: where their weights go, and what a library says while it loads them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd import api
from dnd_hf import checks, devices, precision, sizes

if TYPE_CHECKING:
    import torch

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options of every `from_pretrained` of transformers."""
COMPILER = "inductor"
"""The backend of torch.compile."""


@dataclass(frozen=True)
class Placement:
    """How the weights lie on a device."""

    device: str
    dtype: str
    """ "float32", "bfloat16" or "float16"."""
    quantization: str = "none"
    """ "none", "8bit" or "4bit"."""
    offload: str = "none"
    """ "none", or "cpu" for what does not fit on the device."""


@contextmanager
def load_errors(name: str, folder: Path, what: str, needs: str) -> Iterator[None]:
    """Turn what a library raises as it reads a folder into ModelError: the model `name` in `folder` is not `what`.
    UsageError where a package is missing, such as the one that a checkpoint was packed with."""
    try:
        yield
    except api.DndError:
        raise
    except ImportError as error:
        raise api.UsageError(
            f"{name!r} needs a package that is missing: {' '.join(str(error).split())}",
            "install it, or choose a checkpoint that does without",
        ) from error
    except Exception as error:
        if api.is_out_of_memory(error) or api.is_device_lost(error):
            raise
        raise api.ModelError(
            f"{name!r} in {folder} does not load as {what}: {error or type(error).__name__}",
            f"the folder needs {needs} and safetensors weights",
        ) from error


def load_model(kind: Any, folder: Path, name: str, placement: Placement) -> Any:
    """A model of the transformers class `kind`, placed and in eval mode. Raises ModelError where it is not whole,
    UsageError where bitsandbytes is missing; what else `from_pretrained` raises is for `load_errors`."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": placement.dtype, "device_map": {"": placement.device}}
    if placement.quantization != "none":
        options["quantization_config"] = precision.packing(placement.quantization, placement.dtype, BitsAndBytesConfig)
    elif placement.offload != "none":
        options |= spread(placement.device)
    model = load_whole(kind, folder, name, **LOCAL, **options)
    if placement.quantization == "4bit":
        precision.check_packed(model, name)
    return model.eval()


def load_whole(kind: Any, folder: Path | None, name: str, **options: Any) -> Any:
    """What `kind.from_pretrained` of transformers or diffusers gives for safetensors weights. Raises ModelError where
    they are not whole or no numbers of a model: the libraries would go on with random ones, or with those."""
    library = kind.__module__.partition(".")[0]
    if folder is not None:
        checks.check_packing(folder, name)
    if library == "transformers":
        options["ignore_mismatched_sizes"] = True  # `check_whole` names them
    with quiet(library):
        model, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **options)
    if library == "diffusers":  # it believes the index of a file's shards, and leaves empty what they do not hold
        empty = {key for key, parameter in model.named_parameters() if parameter.is_meta}
        info = {**info, "missing_keys": sorted({*info["missing_keys"], *empty})}
    checks.check_whole(info, name)
    checks.check_finite(model, name)
    return model


def spread(device: str) -> dict[str, Any]:
    """Options of `from_pretrained`: what does not fit on the GPU stays in the machine's memory and visits it."""
    import psutil  # accelerate's own
    import torch

    free = devices.free_memory(device)
    if free is None:
        return {"device_map": {"": device}}
    index = torch.device(device).index
    room = {torch.cuda.current_device() if index is None else index: max(0, free - sizes.work_beside(0, device))}
    return {"device_map": "auto", "max_memory": {**room, "cpu": psutil.virtual_memory().available}}


@contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """No progress bars of transformers or diffusers while they load, nor tables of what was missing: `check_whole` says
    it in a line. No word of bitsandbytes, which tells every CPU which kernels it lacks as diffusers imports it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logs = [import_module(f"{package}.utils.logging") for package in packages]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    levels = [(log, log.get_verbosity()) for log in logs]
    for log in logs:
        log.disable_progress_bar()
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        for log in shown:
            log.enable_progress_bar()


def prepare_chat(model: Any, tokenizer: Any, name: str, template: object) -> None:
    """Make a chat model answer greedily, and a batch of prompts end alike. Raises ModelError without a chat
    template."""
    from transformers import GenerationConfig

    if not template:
        raise api.ModelError(
            f"{name!r} has no chat template: it was not made to follow instructions",
            "choose an instruct model, or its revision that has one",
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Only where an answer ends is taken from the checkpoint's settings: no top_p, no repetition penalty.
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.pad_token_id,
    )


def compile_in_place(module: torch.nn.Module) -> None:
    """Have torch compile it at its first calls; shapes that vary are compiled once."""
    module.compile(backend=COMPILER)
