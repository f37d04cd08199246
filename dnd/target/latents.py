"""Units that are not axes of a layer but directions in it: rows of a matrix, as of probes, PCA or
concept vectors, or the latents of a sparse autoencoder."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dnd.errors import UsageError
from dnd.files import open_regular, place_of

Activation = Literal["none", "relu"]
Normalize = Literal["none", "layer_norm", "constant_norm_rescale"]
_NAMES = ("directions", "weight")


@dataclass(frozen=True, eq=False)
class Latents:
    """What turns a layer's features (..., C) into units (..., K)."""

    name: str
    """ "5 directions of probes.safetensors"."""
    weight: torch.Tensor
    """(K, C), float32."""
    bias: torch.Tensor
    """(K,)."""
    digest: str
    """Of the files."""
    shift: torch.Tensor | None = None
    """(C,), taken off the features first."""
    normalize: Normalize = "none"
    """Of each place's features, before that."""
    scale: torch.Tensor | None = None
    """(K,), multiplied before the activation."""
    offset: torch.Tensor | None = None
    """(K,), added to that."""
    k: int = 0
    """At each place all but the k highest are zero: TopK. 0 keeps all."""
    activation: Activation = "none"
    threshold: torch.Tensor | None = None
    """(K,), which a value must pass or else is zero: JumpReLU."""
    gated: bool = False
    """Units are zero where they were not above zero before `scale` and `offset`."""
    _copies: dict[torch.device, Latents] = field(default_factory=dict, init=False)
    """By device."""

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def is_sparse(self) -> bool:
        """Whether units are zero where they have nothing to say."""
        return self.activation == "relu" or self.k > 0

    def of(self, units: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) -> float32 (B, K, ...)."""
        on = self._on(units.device)
        features = _normalized(units.movedim(1, -1).float(), self.normalize)
        features = features if on.shift is None else features - on.shift
        found = torch.nn.functional.linear(features, on.weight, on.bias)
        return on._activated(found).movedim(-1, 1)

    def _on(self, device: torch.device) -> Latents:
        if device not in self._copies:
            tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
            moved: dict[str, Any] = {name: value.to(device) for name, value in tensors.items()}
            self._copies[device] = replace(self, **moved)
        return self._copies[device]

    def _activated(self, gate: torch.Tensor) -> torch.Tensor:
        found = gate if self.scale is None else gate * self.scale
        found = found if self.offset is None else found + self.offset
        if 0 < self.k < len(self):  # few of many values go on
            values, places = found.topk(self.k, -1)
            values = values.relu() if self.activation == "relu" else values
            return self._opened(torch.zeros_like(found).scatter_(-1, places, values), gate)
        if self.threshold is not None:
            found = torch.where(found > self.threshold, found, 0)
        return self._opened(found.relu() if self.activation == "relu" else found, gate)

    def _opened(self, found: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return torch.where(gate > 0, found, 0) if self.gated else found


def _normalized(features: torch.Tensor, how: Normalize) -> torch.Tensor:
    """As SAELens names and computes it."""
    if how == "layer_norm":
        features = features - features.mean(-1, keepdim=True)
        return features / (features.std(-1, keepdim=True) + 1e-5)
    if how == "constant_norm_rescale":
        length: torch.Tensor = features.norm(dim=-1, keepdim=True)
        return features * (math.sqrt(features.shape[-1]) / length)
    return features


def read_directions(path: str, relu: bool) -> Latents:
    """A safetensors file with rows (K, C) called `directions` or `weight`, or whatever its one matrix is called, and
    perhaps a `bias` (K,). Raises UsageError."""
    file = place_of(path, "target.directions")
    content = read_content(file, "directions")
    tensors = read_tensors(file, content)
    matrices = [name for name, tensor in tensors.items() if tensor.ndim == 2]
    name = next((name for name in _NAMES if name in matrices), matrices[0] if len(matrices) == 1 else None)
    if name is None:
        known = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise UsageError(f"{file} has no matrix `directions` of (directions, features)", f"It has {known}.")
    if any(tensor.is_complex() for tensor in tensors.values()):
        raise UsageError(f"{file} has complex numbers")
    weight = tensors[name].float()
    like_bias = [other for other, tensor in tensors.items() if tensor.shape == (len(weight),) and other != name]
    if like_bias and "bias" not in tensors:
        hint = "If it is added to the projections, call it `bias`; else leave it out of the file."
        raise UsageError(f"{file}: it is not known what {like_bias[0]} is, a value for each direction", hint)
    bias = tensors.get("bias", torch.zeros(len(weight))).float()
    if bias.shape != (len(weight),):
        raise UsageError(f"{file}: bias is {tuple(bias.shape)}, and there are {len(weight)} directions in {name}")
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise UsageError(f"{file} has values that are not finite")
    digest = hashlib.sha256(content).hexdigest()
    activation: Activation = "relu" if relu else "none"
    return Latents(f"{len(weight)} directions of {file.name}", weight, bias, digest, activation=activation)


def read_content(file: Path, setting: str) -> bytes:
    """The bytes of a file that a setting names. Raises UsageError."""
    try:
        with open_regular(file) as opened:
            return opened.read()
    except OSError as error:
        raise UsageError(f"cannot read target.{setting} {file}: {error.strerror or error}") from error


def read_tensors(file: Path, content: bytes) -> Mapping[str, torch.Tensor]:
    """What a safetensors file holds. Raises UsageError."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        hint = "safetensors.torch.save_file({name: tensor}, file) writes one."
        raise UsageError(f"{file} is no safetensors file: {error}", hint) from error
