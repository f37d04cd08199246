"""Models of transformers from local folders: where their weights go, and what is wrong with a folder that has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnd import api
from dnd_hf import fitting

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Options of every `from_pretrained`."""


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
    """Turn what `from_pretrained` raises into ModelError: the model `name` in `folder` is not `what`."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise api.ModelError(
            f"{name!r} in {folder} does not load as {what}: {error}",
            f"the folder needs {needs} and safetensors weights",
        ) from error


def load_model(kind: Any, folder: Path, name: str, placement: Placement) -> Any:
    """A model of the transformers class `kind`, placed and in eval mode. Raises ModelError where weights are missing,
    UsageError where bitsandbytes is; what else `from_pretrained` raises is for `load_errors`."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {"dtype": placement.dtype, "device_map": {"": placement.device}}
    if placement.quantization != "none":
        options["quantization_config"] = fitting.packing(placement.quantization, placement.dtype, BitsAndBytesConfig)
    elif placement.offload != "none":
        options |= fitting.spread(placement.device)
    with fitting.quiet("transformers"):
        model, info = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **LOCAL, **options)
    fitting.check_whole(info, name)
    if placement.quantization == "4bit":
        fitting.check_packed(model, name)
    return model.eval()
