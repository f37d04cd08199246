"""Sparse autoencoders as people store them: a folder of SAELens's, or a file of saev's. Only encoders are used.

SAELens subtracts the decoder's bias unless the config says otherwise; saev's newer files (with a `schema`) do not.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from dnd.errors import UsageError
from dnd.target.latents import Latents, Normalize, read_content, read_tensors

_CONFIG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_KNOWN = "A folder with cfg.json and sae_weights.safetensors, as SAELens saves it, or a .pt file of saev."


def read_sae(path: str) -> Latents:
    """The encoder of a sparse autoencoder: its latents are units. Raises UsageError."""
    place = Path(path)
    found = _saelens(place) if place.is_dir() else _saev(place)
    if not all(bool(t.isfinite().all()) for t in vars(found).values() if isinstance(t, torch.Tensor)):
        raise UsageError(f"{place} has values that are not finite")
    return found


def _saelens(folder: Path) -> Latents:
    config_bytes, content = (read_content(folder / name, "sae") for name in (_CONFIG, _WEIGHTS))
    config, tensors = _json(folder / _CONFIG, config_bytes), read_tensors(folder / _WEIGHTS, content)
    kind = config.get("architecture") or "standard"
    form = config.get("normalize_activations") or "none"
    if form not in get_args(Normalize):
        raise UsageError(
            f"{folder}: normalize_activations = {form!r} is not computed here",
            "Fold it into the weights first: sae.fold_activation_norm_scaling_factor(...), then save_model.",
        )
    latents = _encoder(folder, tensors, hashlib.sha256(config_bytes + content).hexdigest())
    shift = tensors["b_dec"].float() if config.get("apply_b_dec_to_input", True) and "b_dec" in tensors else None
    latents = replace(latents, shift=shift, normalize=cast(Normalize, form))
    if config.get("rescale_acts_by_decoder_norm"):
        latents = replace(latents, scale=_tensor(folder, tensors, "W_dec").float().norm(dim=-1))
    params = config.get("activation_fn_kwargs") or {}
    named = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if kind == "jumprelu":
        threshold = _tensor(folder, tensors, "threshold").float().expand(len(latents))
        return replace(latents, activation="relu", threshold=threshold)
    if kind == "topk" or named == "topk":
        return replace(latents, activation="topk", k=_count(folder, config.get("k") or params.get("k")))
    if kind == "standard" and named == "relu":
        return replace(latents, activation="relu")
    hint = "Save it for inference (save_inference_model makes jumprelu of batchtopk). Known: standard, topk, jumprelu."
    raise UsageError(f"{folder}: a sparse autoencoder {kind!r} with activation {named!r} is not known", hint)


def _saev(file: Path) -> Latents:
    content = read_content(file, "sae")
    head, _, rest = content.partition(b"\n")
    if not head.startswith(b"{"):
        raise UsageError(f"{file} is no sparse autoencoder that is known", _KNOWN)
    config = _json(file, head)
    try:
        tensors = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{file}: its weights cannot be read: {type(error).__name__}", _KNOWN) from error
    if not isinstance(tensors, Mapping):
        raise UsageError(f"{file} holds {type(tensors).__name__} and no state dict", _KNOWN)
    latents = _encoder(file, tensors, hashlib.sha256(content).hexdigest())
    if "schema" not in config:  # saev 0.1: ReLU, and the decoder's bias is taken off first
        return replace(latents, activation="relu", shift=_tensor(file, tensors, "b_dec").float())
    given = config.get("cfg", {}).get("activation", {})
    kind, params = str(given.get("cls", "Relu")).lower(), given.get("params") or {}
    if kind == "relu":
        return replace(latents, activation="relu")
    if kind in ("topk", "batchtopk"):  # at inference per place, as saev does
        return replace(latents, activation="topk", k=_count(file, params.get("top_k") or params.get("k")))
    raise UsageError(f"{file}: the activation {kind!r} is not known", "Relu, TopK and BatchTopK are.")


def _encoder(place: Path, tensors: Mapping[str, torch.Tensor], digest: str) -> Latents:
    weight, bias = (_tensor(place, tensors, name).float() for name in ("W_enc", "b_enc"))
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        raise UsageError(f"{place}: W_enc is {tuple(weight.shape)} and b_enc {tuple(bias.shape)}", _KNOWN)
    return Latents(f"{len(bias)} latents of {place.name}", weight.T.contiguous(), bias, digest)


def _tensor(place: Path, tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    found = tensors.get(name)
    if not isinstance(found, torch.Tensor):
        raise UsageError(f"{place} has no tensor {name}; it has {', '.join(map(str, tensors)) or 'none'}", _KNOWN)
    return found


def _json(file: Path, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: its config is not JSON: {error}", _KNOWN) from error
    if not isinstance(found, dict):
        raise UsageError(f"{file}: its config is no table", _KNOWN)
    return found


def _count(place: Path, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{place}: its config does not say how many latents are kept (k): {value!r}", _KNOWN)
    return value
