"""Sparse autoencoders of overcomplete: its modules, saved whole with torch.save(sae, file)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dnd.errors import UsageError
from dnd.target.latents import Latents
from dnd.target.saved import Stored

_SINGLE = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "RATopKSAE", "RAJumpSAE")
_ENCODERS = "Known are the encoders linear and mlp_bn_1, and sae.tied() and sae.untied()."


def read_overcomplete(file: Path, sae: Stored, digest: str) -> Latents:
    """As the module computes after eval(). Raises UsageError."""
    kind = str(sae)
    if kind not in _SINGLE:
        raise UsageError(f"{file}: a {kind} is not computed here", f"{', '.join(_SINGLE)} are.")
    weight, bias = _encoder(file, sae.get("encoder"), cut=kind.endswith("TopKSAE") or kind == "SAE")
    latents = Latents(f"{len(weight)} latents of {file.name}", weight, bias, digest, activation="relu")
    if kind == "BatchTopKSAE":  # both keep values that equal their threshold
        threshold = sae.get("running_threshold")
        if threshold is None:
            raise UsageError(f"{file}: its BatchTopK has no threshold yet", "Train it, or call it in train() mode.")
        return replace(latents, threshold=_below(torch.as_tensor(threshold).float().expand(len(weight))))
    if kind in ("JumpSAE", "RAJumpSAE"):
        return replace(latents, threshold=_below(_floats(file, sae, "thresholds").exp()))
    return replace(latents, k=int(sae.get("top_k"))) if kind.endswith("TopKSAE") else latents


def _encoder(file: Path, encoder: Any, cut: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, C) and (K,)."""
    if not isinstance(encoder, Stored) or str(encoder) not in ("MLPEncoder", "TieableEncoder"):
        raise UsageError(f"{file}: its encoder {encoder} is not computed here", _ENCODERS)
    if str(encoder) == "TieableEncoder":
        weight = _floats(file, encoder, "weight") if encoder.get("weight") is not None else _dictionary(file, encoder)
        return weight, torch.zeros(len(weight)) if encoder.get("bias") is None else _floats(file, encoder, "bias")
    blocks, last = encoder.get("mlp_blocks").get("_modules"), encoder.get("final_block")
    linear, norm, end = last.get("0"), last.get("1"), encoder.get("final_activation")
    if (
        blocks
        or str(linear) != "Linear"
        or str(norm) not in ("Identity", "BatchNorm1d")
        or (cut and str(end) != "ReLU")
    ):
        made = ", ".join([*(["hidden layers"] if blocks else []), *map(str, (linear, norm, end))])
        raise UsageError(f"{file}: an encoder of {made} is not computed here", _ENCODERS)
    weight, bias = _floats(file, linear, "weight"), _floats(file, linear, "bias")
    if str(norm) == "BatchNorm1d":
        scale = _floats(file, norm, "weight") / (_floats(file, norm, "running_var") + norm.get("eps")).sqrt()
        bias = (bias - _floats(file, norm, "running_mean")) * scale + _floats(file, norm, "bias")
        weight = weight * scale[:, None]
    return weight, bias


def _dictionary(file: Path, encoder: Stored) -> torch.Tensor:
    """The decoder, which a tied encoder shares. It is made when the module goes to eval()."""
    layer = encoder.get("tied_to")
    if encoder.get("training") or not isinstance(layer, Stored) or layer.get("_fused_dictionary") is None:
        raise UsageError(f"{file} has tied weights and was saved while training", "Save it again after sae.eval().")
    return _floats(file, layer, "_fused_dictionary")


def _floats(file: Path, module: Stored, name: str) -> torch.Tensor:
    found = module.get(name)
    if not isinstance(found, torch.Tensor):
        raise UsageError(f"{file}: its {module} has no {name}", _ENCODERS)
    return found.detach().float()


def _below(threshold: torch.Tensor) -> torch.Tensor:
    return threshold.nextafter(torch.tensor(-math.inf))
