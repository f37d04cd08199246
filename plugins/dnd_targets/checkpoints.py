"""Checkpoints as training code leaves them: nested in dictionaries, under prefixes, beside optimizers and arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import ModelError, Runtime
from dnd_targets.config import FileConfig

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

_NESTED = (
    *("state_dict", "model_state_dict", "model", "net", "network", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema"),
)
"""Where a checkpoint keeps its model, the likeliest first; an average of weights only where there is nothing else."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
"""What DataParallel, torch.compile and training code put before every name."""
_HARMLESS = re.compile(
    r"(^|\.)(total_ops|total_params|num_batches_tracked|relative_position_index|attn_mask|position_ids)$"
)
"""Counters of profilers and constants that the model makes itself."""


def weights_file(config: FileConfig, runtime: Runtime) -> Path:
    """The file that the settings name; of a model in models.lock the only file of tensors in its folder."""
    if config.weights is not None:
        return Path(config.weights).expanduser()
    folder = runtime.weights(config.model or "")
    files = [file for pattern in ("*.safetensors", "*.pth", "*.pt") for file in sorted(folder.glob(pattern))]
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:3]) if files else "no file of tensors"
        raise ModelError(f"the model {config.model!r} has {found} in {folder}", "It needs one .safetensors file.")
    return files[0]


def load_checkpoint(module: torch.nn.Module, file: Path, name: str, key: str | None = None) -> None:
    """Fill a module from a file of tensors, which must fit exactly. ModelError names the first tensor that does not."""
    found = _named_as(module, _tensors(_read(file, name), file, name, key))
    wanted = module.state_dict()
    missing = [one for one in wanted if one not in found and not _HARMLESS.search(one)]
    left_over = [one for one in found if one not in wanted and not _HARMLESS.search(one)]
    reshaped = [one for one in wanted if one in found and found[one].shape != wanted[one].shape]
    if missing or left_over or reshaped:
        raise _misfit(file, name, missing, left_over, [(one, found[one], wanted[one]) for one in reshaped])
    module.load_state_dict({one: tensor for one, tensor in found.items() if one in wanted}, strict=False)


def _misfit(file: Path, name: str, missing: list[str], left_over: list[str], reshaped: list[Any]) -> ModelError:
    faults = [f"it has no {_listed(missing)}"] if missing else []
    faults += [f"{name} has no {_listed(left_over)}"] if left_over else []
    faults += [f"{_plain(one)} is {tuple(a.shape)} in it and {tuple(b.shape)} in {name}" for one, a, b in reshaped[:1]]
    hint = "Name the architecture that the file was trained with."
    heads = [(a.shape[0], b.shape[0]) for _, a, b in reshaped if a.ndim and a.shape[1:] == b.shape[1:]]
    if reshaped and len(heads) == len(reshaped) and not (missing or left_over):
        hint = f"Set target.num_classes to {heads[0][0]}."
    return ModelError(f"{_plain(file)} does not fit {name}: {'; '.join(faults)}", hint)


def _read(file: Path, name: str) -> Any:
    if not file.is_file():
        raise ModelError(f"there is no file {_plain(file)}", "Give the path of weights on this machine.")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return _unpickled(file)
    except Exception as error:  # Readers raise their own kinds: SafetensorError, UnpicklingError, ...
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = (
            f"it holds an object of {code[1]}, whose code would run" if code else "it is damaged, or of another format"
        )
        raise ModelError(
            f"{_plain(file)} does not load as weights of {name}: {what}",
            "Save its tensors alone, where they come from: torch.save(model.state_dict(), FILE), or as safetensors.",
        ) from error


def _unpickled(file: Path) -> Any:
    """Tensors, plain values, and two kinds that do nothing when they are made: arguments of a training script, and
    numpy's numbers."""
    import argparse

    import numpy as np
    import torch

    scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    with torch.serialization.safe_globals(
        [argparse.Namespace, (scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds]
    ):
        return torch.load(file, map_location="cpu", weights_only=True)


def _tensors(found: Any, file: Path, name: str, key: str | None) -> Tensors:
    import torch

    def is_state(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(one, torch.Tensor) for one in value.values())

    if not isinstance(found, Mapping):
        raise ModelError(
            f"{_plain(file)} holds no weights of {name} but {type(found).__name__}", "It must be a state dict."
        )
    if key is not None and not is_state(found.get(key)):
        inside = ", ".join(_plain(one) for one, value in found.items() if is_state(value)) or "no such dictionary"
        raise ModelError(f"{_plain(file)} has no weights under {key!r}", f"target.weights_key may be: {inside}.")
    keys = [key] if key is not None else [one for one in _NESTED if is_state(found.get(one))]
    state = found[keys[0]] if keys else found
    tensors = {str(one): value for one, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ModelError(f"{_plain(file)} holds no tensors", "It must be a state dict.")
    return tensors


def _named_as(module: torch.nn.Module, found: Tensors) -> Tensors:
    """The tensors under the module's own names: prefixes that all of them share come off where that helps."""
    wanted, forms = set(module.state_dict()), [found]
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in forms[-1])), None):
        forms.append({name.removeprefix(prefix): tensor for name, tensor in forms[-1].items()})
    return max(forms, key=lambda form: len(wanted & form.keys()))


def _listed(keys: list[str]) -> str:
    return _plain(keys[0]) + (f" (and {len(keys) - 1} more)" if len(keys) > 1 else "")


def _plain(text: object) -> str:
    """A name from a file, without what steers a terminal."""
    return re.sub(r"[^\x20-\x7e\u00a1-\uffff]", "?", str(text))[:200]
