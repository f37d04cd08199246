"""What the plugins that run large models share: number formats, packed weights, and what fits a device's memory."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dnd import api
from dnd_hf import sizes

if TYPE_CHECKING:
    import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["auto", "none", "8bit", "4bit"]

SHARE = 0.85
"""So much of the free memory a batch may take: the allocator leaves gaps."""
COMPILER = "inductor"
"""The backend of torch.compile."""


def check_settings(batch_size: int | str, quantization: str, offload: str, compiled: bool) -> None:
    """ValueError for what does not go together."""
    if isinstance(batch_size, int) and batch_size < 1:
        raise ValueError("batch_size is 1 or more, or auto")
    if offload != "none" and quantization in ("8bit", "4bit"):
        raise ValueError(f"offload {offload!r} does not go with quantization {quantization!r}")
    if offload != "none" and compiled:
        raise ValueError("compile does not go with offload")


def batch_limit(setting: int | str, automatic: Mapping[str, int], device: str) -> int:
    """The setting, or how many "auto" begins with on this kind of device."""
    return setting if isinstance(setting, int) else automatic["cuda" if device.startswith("cuda") else "cpu"]


def dtype_name(setting: str, device: str) -> str:
    """ "auto" is float32 on a CPU; on CUDA bfloat16, or float16 where the GPU has no bfloat16 of its own."""
    if setting != "auto":
        return setting
    if not device.startswith("cuda"):
        return "float32"
    import torch

    with torch.cuda.device(device):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def free_memory(device: str) -> int | None:
    """Bytes that could still be taken on a GPU, this process's own cache included; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def choose_quantization(setting: str, files: Callable[[], list[Path]], dtype: str, device: str) -> str:
    """ "auto" is the least packing whose weights fit the free memory of a GPU, and "none" on a CPU."""
    if setting != "auto":
        return setting
    free = free_memory(device)
    for kind in ("none", "8bit"):
        if free is None or needed(sizes.weight_bytes(files(), dtype, kind)) <= free:
            return kind
    return "4bit"


def precision(config: Any, runtime: api.Runtime) -> tuple[str, str]:
    """dtype and quantization of settings `model`, `dtype`, `quantization` and `offload`, "auto" resolved by what the
    device has free; weights that are offloaded are not packed."""

    def files() -> list[Path]:
        return sorted(runtime.weights(config.model).glob("*.safetensors"))

    dtype = dtype_name(config.dtype, runtime.device)
    if config.offload != "none":
        return dtype, "none"
    return dtype, choose_quantization(config.quantization, files, dtype, runtime.device)


def memory(config: Any, runtime: api.Runtime, dtype: str, quantization: str) -> int:
    """Bytes that a backend with these settings needs on its device for one item at a time: an estimate. Weights that
    are offloaded need no more than there is."""
    files = sorted(runtime.weights(config.model).glob("*.safetensors"))
    moved = config.offload != "none" and runtime.device != "cpu"
    weights = 0 if moved else sizes.weight_bytes(files, dtype, quantization)
    return weights + sizes.work_beside(weights, runtime.device)


def needed(weights: int) -> int:
    """Bytes on a GPU, with what the work takes for one item at a time: an estimate."""
    return weights + sizes.work_beside(weights, "cuda")


def packing(kind: str, dtype: str, settings: Any) -> Any:
    """`settings` is the BitsAndBytesConfig of transformers or of diffusers. UsageError without bitsandbytes."""
    if find_spec("bitsandbytes") is None:
        raise api.UsageError(
            f"quantization {kind!r} needs bitsandbytes",
            'pip install "dnd-describe[quant]", or set quantization to "none"',
        )
    if kind == "8bit":  # a line for every layer of every batch that is not in float16 would drown all others
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return settings(load_in_8bit=True)
    return settings(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch_dtype(dtype))


def check_packed(model: Any, name: str) -> None:
    """ModelError where 4-bit weights have a width that bitsandbytes cannot work with: it packs 64 in a row."""
    import bitsandbytes

    for place, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.in_features % 64:
            raise api.ModelError(
                f"{name!r} cannot be packed into 4 bits: {place} has {module.in_features} inputs, no multiple of 64",
                'set quantization to "8bit" or "none"',
            )


def spread(device: str) -> dict[str, Any]:
    """Options of `from_pretrained`: what does not fit on the GPU stays in the machine's memory and visits it."""
    import psutil  # accelerate's own
    import torch

    free = free_memory(device)
    if free is None:
        return {"device_map": {"": device}}
    index = torch.device(device).index
    room = {torch.cuda.current_device() if index is None else index: max(0, free - sizes.work_beside(0, device))}
    return {"device_map": "auto", "max_memory": {**room, "cpu": psutil.virtual_memory().available}}


@contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """No progress bars of transformers or diffusers while they load, and no word of bitsandbytes, which tells every CPU
    which kernels it lacks as diffusers imports it."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logs = [import_module(f"{package}.utils.logging") for package in packages]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def check_architecture(file: Path, name: str, wanted: str, key: str = "architectures") -> None:
    """ModelError where a config says that it belongs to another kind of model; one that says nothing may pass."""
    try:
        said = json.loads(file.read_text("utf-8")).get(key) or []
    except (OSError, ValueError, AttributeError):
        return  # the loader says it better
    kinds = [said] if isinstance(said, str) else said
    if kinds and wanted not in kinds:
        raise api.ModelError(
            f"{name!r} is a {', '.join(kinds)}, not a {wanted}", "choose a model made for this backend"
        )


def largest_batch(trial: Callable[[int], object], limit: int, device: str) -> int:
    """The largest power of two up to `limit` that fits a GPU, found by trying; `limit` on a CPU.

    `trial` works on so many items. Batches of one and two say what an item takes; the size that follows is
    tried itself, and halved while memory runs out.
    """
    if free_memory(device) is None or limit == 1:
        return limit
    trial(1)  # libraries take workspace at their first use
    one, two = _peak(device, trial, 1), _peak(device, trial, 2)
    each = max(two - one, 1)
    room = SHARE * (free_memory(device) or 0) - (one - each)
    size = min(limit, max(1, int(room // each)))
    size = 1 << (size.bit_length() - 1)
    while size > 2 and _runs_out(trial, size):
        release(device)
        size //= 2
    return size


def _peak(device: str, trial: Callable[[int], object], size: int) -> int:
    """Bytes that a trial takes at most, beside what is there before."""
    import torch

    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trial(size)
    return torch.cuda.max_memory_allocated(device) - before


def _runs_out(trial: Callable[[int], object], size: int) -> bool:
    try:
        trial(size)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return True
    return False


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and api.is_out_of_memory(error)


@contextmanager
def device_errors(model: str, device: str, advice: str) -> Iterator[None]:
    """Turn memory that ran out and a GPU that is gone into `DeviceError`, which ends the stage."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            free = free_memory_or_none(device)
            left = "" if free is None else f"; {free / 1e9:.1f} GB are free"
            raise api.DeviceError(f"{model} does not fit into the memory of {device}{left}", advice) from error
        if api.is_device_lost(error):
            raise api.DeviceError(
                f"{device} stopped working under {model}: {' '.join(str(error).split())[:400]}",
                "Nothing computed so far is lost: see that `nvidia-smi` shows the GPU, then run the same command.",
            ) from error
        raise


def free_memory_or_none(device: str) -> int | None:
    """As `free_memory`, and None too for a GPU that does not answer."""
    try:
        return free_memory(device)
    except RuntimeError:
        return None


def release(device: str) -> None:
    """Give the memory of what nobody refers to any more back to the device."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # a GPU that is gone: its memory is too, and the cause has been raised
            if not api.is_device_lost(error):
                raise


def compile_in_place(module: torch.nn.Module) -> None:
    """Have torch compile it at its first calls; shapes that vary are compiled once."""
    module.compile(backend=COMPILER)
