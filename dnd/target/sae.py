"""Sparse autoencoders as people store them: SAELens, ViT-Prisma, saev, overcomplete. Only encoders are used.

SAELens subtracts the decoder's bias unless its config says otherwise, ViT-Prisma always does, and saev's newer files
(with a `schema`) and overcomplete never do.
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
from dnd.files import place_of
from dnd.target.latents import Latents, Normalize, read_content, read_tensors
from dnd.target.overcomplete import read_overcomplete
from dnd.target.saved import Stored, read_saved

_KNOWN = (
    "A folder with cfg.json and sae_weights.safetensors, as SAELens saves it; with config.json and weights.pt, as "
    "ViT-Prisma does; a .pt file of saev; or a module of overcomplete, saved whole."
)
_NAMES = {"W_enc", "b_enc", "W_dec", "b_dec", "scaling_factor", "W_skip", "b_dec_out"}  # the last three only decode
_GATED = {"b_gate", "b_mag", "r_mag"}
_THRESHOLDS = {"jumprelu": "threshold", "batchtopk": "topk_threshold", "matryoshka_batchtopk": "topk_threshold"}
_SCHEMAS = (1, 2, 3, 4, 5)


def read_sae(path: str) -> Latents:
    """The encoder of a sparse autoencoder: its latents are units. Raises UsageError."""
    place = place_of(path, "target.sae")
    try:
        if place.is_dir():
            found = _prisma_folder(place) if (place / "config.json").is_file() else _saelens(place)
        else:
            found = _file(place)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:  # a list for a name, tensors that do not fit
        raise UsageError(f"{place} is not as those write it that are known: {error}", _KNOWN) from error
    sizes = {"shift": found.weight.shape[1], **dict.fromkeys(("scale", "offset", "threshold"), len(found))}
    for name, size in sizes.items():
        value = getattr(found, name)
        if value is not None and value.shape != (size,):
            raise UsageError(f"{place}: its {name} is {tuple(value.shape)}, and its encoder wants {(size,)}", _KNOWN)
    if not all(bool(t.isfinite().all()) for t in vars(found).values() if isinstance(t, torch.Tensor)):
        raise UsageError(f"{place} has values that are not finite")
    return found


def _file(file: Path) -> Latents:
    content = read_content(file, "sae")
    if content.startswith(b"{"):
        return _saev(file, content)
    saved = read_saved(file, content, _KNOWN)
    if isinstance(saved, Stored) and saved.path.startswith("overcomplete."):
        return read_overcomplete(file, saved, hashlib.sha256(content).hexdigest())
    if isinstance(saved, Mapping) and isinstance(saved.get("cfg"), Stored):
        return _prisma(file, vars(saved["cfg"]), _state(file, saved), hashlib.sha256(content).hexdigest())
    raise UsageError(f"{file} is no sparse autoencoder that is known", _KNOWN)


# --- SAELens, and ViT-Prisma, which began as a copy of it ---------------------------------------------


def _saelens(folder: Path) -> Latents:
    config_bytes, content = (read_content(folder / name, "sae") for name in ("cfg.json", "sae_weights.safetensors"))
    config = _json(folder / "cfg.json", config_bytes)
    tensors = read_tensors(folder / "sae_weights.safetensors", content)
    config = {"normalize_activations": "none", **config}
    latents = _configured(folder, config, tensors, hashlib.sha256(config_bytes + content).hexdigest())
    return latents if config.get("apply_b_dec_to_input", True) else replace(latents, shift=None)


def _prisma_folder(folder: Path) -> Latents:
    config_bytes = read_content(folder / "config.json", "sae")
    files = sorted(folder.glob("*.pt"))
    file = folder / "weights.pt" if folder / "weights.pt" in files or len(files) != 1 else files[0]
    content = read_content(file, "sae")
    tensors = _state(file, read_saved(file, content, "Save sae.state_dict() as weights.pt, beside config.json."))
    digest = hashlib.sha256(config_bytes + content).hexdigest()
    return _prisma(folder, _json(folder / "config.json", config_bytes), tensors, digest)


def _prisma(place: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], digest: str) -> Latents:
    missing = [name for name in ("normalize_activations", "activation_fn_str") if name not in config]
    if missing:
        raise UsageError(f"{place}: its config has no {' and no '.join(missing)}", _KNOWN)
    kind = "standard" if config.get("is_transcoder") else config.get("architecture")
    return _configured(place, {**config, "architecture": kind}, tensors, digest)


def _configured(place: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], digest: str) -> Latents:
    """With the decoder's bias taken off first."""
    kind, form = config.get("architecture") or "standard", config["normalize_activations"] or "none"
    if form not in get_args(Normalize):
        hint = "Fold it into the weights: SAELens does so when training ends. Checkpoints before that are not complete."
        raise UsageError(f"{place}: normalize_activations = {form!r} is not computed here", hint)
    latents = _encoder(place, tensors, digest, "b_gate" if kind == "gated" else "b_enc")
    own = _GATED if kind == "gated" else {_THRESHOLDS[kind]} if kind in _THRESHOLDS else set()
    strangers = set(tensors) - _NAMES - own
    if strangers:
        raise UsageError(f"{place}: {', '.join(sorted(strangers))} is unknown of an autoencoder {kind!r}", _KNOWN)
    shift = _tensor(place, tensors, "b_dec").float()
    latents = replace(latents, shift=shift, normalize=cast(Normalize, form), activation="relu")
    if config.get("rescale_acts_by_decoder_norm"):
        latents = replace(latents, scale=_tensor(place, tensors, "W_dec").float().norm(dim=-1))
    params = config.get("activation_fn_kwargs") or {}
    named = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    if kind in _THRESHOLDS:
        threshold = _tensor(place, tensors, _THRESHOLDS[kind]).float().expand(len(latents))
        return replace(latents, threshold=threshold)
    known = kind in ("standard", "topk", "gated") and named in ("relu", "topk") and set(params) <= {"k"}
    if not known:
        hint = "Known: standard, topk, gated, jumprelu, batchtopk; activations relu and topk."
        raise UsageError(f"{place}: a sparse autoencoder {kind!r} with {_said(named, params)} is not known", hint)
    if kind == "topk" or named == "topk":
        latents = replace(latents, k=_count(place, config.get("k") or params.get("k")))
    if kind == "gated":
        scale, offset = (_tensor(place, tensors, name).float() for name in ("r_mag", "b_mag"))
        latents = replace(latents, gated=True, scale=scale.exp(), offset=offset - latents.bias * scale.exp())
    return latents


def _said(named: str, params: Mapping[str, Any]) -> str:
    return f"activation {named!r}" + "".join(f", {name} = {value!r}" for name, value in params.items())


# --- saev --------------------------------------------------------------------------------------------


def _saev(file: Path, content: bytes) -> Latents:
    head, _, rest = content.partition(b"\n")
    header = _json(file, head)
    try:
        loaded = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{file}: its weights cannot be read: {type(error).__name__}", _KNOWN) from error
    tensors = _state(file, loaded)
    latents = replace(_encoder(file, tensors, hashlib.sha256(content).hexdigest()), activation="relu")
    if "schema" not in header:  # saev 0.1: ReLU, and the decoder's bias is taken off first
        return replace(latents, shift=_tensor(file, tensors, "b_dec").float())
    if header["schema"] not in _SCHEMAS:
        raise UsageError(f"{file}: a file of saev's schema {header['schema']!r} is not known", f"{_SCHEMAS} are.")
    config = header.get("cfg") or {}
    given = config.get("activation") or {"cls": header.get("cls"), "params": config}  # as schema 1 began
    kind, params = str(given.get("cls")), given.get("params") or {}
    if kind == "Relu":
        return latents
    if kind == "BatchTopK" and "activation.threshold" in tensors:
        threshold = tensors["activation.threshold"].float().clamp(min=0).expand(len(latents))
        return replace(latents, threshold=threshold)
    if kind in ("TopK", "BatchTopK"):  # kept values below zero stay; an older BatchTopK is taken per place
        return replace(latents, k=_count(file, params.get("top_k")), activation="none")
    raise UsageError(f"{file}: the activation {kind!r} is not known", "Relu, TopK and BatchTopK are.")


# --- tensors and numbers -----------------------------------------------------------------------------


def _encoder(place: Path, tensors: Mapping[str, torch.Tensor], digest: str, bias_name: str = "b_enc") -> Latents:
    weight, bias = (_tensor(place, tensors, name).float() for name in ("W_enc", bias_name))
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        raise UsageError(f"{place}: W_enc is {tuple(weight.shape)} and {bias_name} {tuple(bias.shape)}", _KNOWN)
    return Latents(f"{len(bias)} latents of {place.name}", weight.T.contiguous(), bias, digest)


def _state(file: Path, saved: Any) -> Mapping[str, torch.Tensor]:
    state = saved.get("state_dict", saved) if isinstance(saved, Mapping) else saved
    if not isinstance(state, Mapping):
        raise UsageError(f"{file} holds {type(state).__name__} and no state dict", _KNOWN)
    return state


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
