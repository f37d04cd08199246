"""Proof that a folder holds the model which it seems to: each weight was found, none was left over, and all are numbers
of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnd import api
from dnd_hf import sizes

_HARMLESS = re.compile(r"(^|\.)(position_ids|inv_freq)$")
"""Constants that older checkpoints hold and today's classes make themselves."""
_BEGIN = 4096
"""Numbers of a weight that are looked at: a look at all would take as long as loading them."""


def check_packing(folder: Path, name: str) -> None:
    """ModelError where config.json does not say how packed weights are to be read, or says it of plain ones: they are
    read as what they are not."""
    try:
        config = dict(json.loads((folder / "config.json").read_text("utf-8")))
        tensors = [tensor for file in folder.glob("*.safetensors") for tensor in sizes.read_tensors(file)]
    except (OSError, ValueError, TypeError, api.ModelError):
        return  # the loader says it better
    said = config.get("quantization_config")
    total = sum(tensor.count for tensor in tensors)
    integers = sum(tensor.count for tensor in tensors if not tensor.is_float)
    narrow = sum(tensor.count for tensor in tensors if tensor.is_float and tensor.bytes_each < 2)
    if not said and 2 * integers > total:
        raise api.ModelError(
            f"the weights of {name!r} are integers, and no quantization_config in its config.json says of what",
            "take a checkpoint in float32, bfloat16 or float16, or one whose config.json says how it was packed",
        )
    if said and 100 * (integers + narrow) < total:  # counters and positions are integers in any case
        raise api.ModelError(
            f"the weights of {name!r} are not packed, though the quantization_config in its config.json says so",
            "take quantization_config out of its config.json",
        )


def check_finite(model: Any, name: str) -> None:
    """ModelError where a weight begins with what is no number, as all do after a training that went astray."""
    import torch

    for key, weight in model.named_parameters():
        begin = weight.detach().flatten()[:_BEGIN]
        if begin.is_floating_point() and not begin.is_meta and not torch.isfinite(begin.float()).all():
            raise api.ModelError(f"the weights of {name!r} hold what is no number: {key}", "take another checkpoint")


def check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    """ModelError where a tokenizer knows less than half of the tokens of its model of transformers: from a folder
    without its files the library makes an empty one."""
    tokens = getattr(model.config.get_text_config(), "vocab_size", 0)
    if 2 * len(tokenizer) < tokens:
        raise api.ModelError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, the model {tokens}",
            "put the tokenizer's files of the model beside its weights: tokenizer.json and tokenizer_config.json",
        )


def check_whole(info: Mapping[str, Any], name: str) -> None:
    """ModelError where weights were missing, of another shape, or of no part of the model. `info` is what
    `from_pretrained` says of its loading."""
    left_over = [key for key in info["unexpected_keys"] if not _HARMLESS.search(key)]
    faults = [
        (info["missing_keys"], "is missing", "are missing"),
        ([key for key, *_ in info["mismatched_keys"]], "has another shape", "have another shape"),
        (left_over, "belongs to no part of it", "belong to no part of it"),
    ]
    for keys, one, several in faults:
        if keys:
            raise api.ModelError(
                f"the weights of {name!r} are not whole: {_listed(sorted(keys))} {several if len(keys) > 1 else one}",
                "see that config.json and the weights are of the same checkpoint",
            )


def _listed(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def check_architecture(file: Path, name: str, *wanted: str, key: str = "architectures") -> None:
    """ModelError where a config says that it belongs to none of these kinds; one that says nothing may pass."""
    try:
        said = json.loads(file.read_text("utf-8")).get(key) or []
    except (OSError, ValueError, AttributeError):
        return  # the loader says it better
    kinds = [said] if isinstance(said, str) else said
    if kinds and not set(wanted) & set(kinds):
        raise api.ModelError(
            f"{name!r} is a {', '.join(kinds)}, not a {' or '.join(wanted)}", "choose a model made for this backend"
        )
