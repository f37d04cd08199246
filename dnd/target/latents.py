"""Units that are not axes of a layer but directions in it: rows of a matrix, as of probes, PCA or concept vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dnd.errors import UsageError
from dnd.files import open_regular

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
    relu: bool
    digest: str
    """Of the files."""
    _on: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.weight)

    def of(self, units: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) -> float32 (B, K, ...)."""
        if units.device not in self._on:
            self._on[units.device] = self.weight.to(units.device), self.bias.to(units.device)
        weight, bias = self._on[units.device]
        found = torch.nn.functional.linear(units.movedim(1, -1).float(), weight, bias)
        return (found.relu() if self.relu else found).movedim(-1, 1)


def read_directions(path: str, relu: bool) -> Latents:
    """A safetensors file with rows (K, C) called `directions` or `weight`, or whatever its one matrix is called, and
    perhaps a `bias` (K,). Raises UsageError."""
    file = Path(path)
    content = _bytes(file)
    tensors = _tensors(file, content)
    matrices = [name for name, tensor in tensors.items() if tensor.ndim == 2]
    name = next((name for name in _NAMES if name in matrices), matrices[0] if len(matrices) == 1 else None)
    if name is None:
        known = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items()) or "nothing"
        raise UsageError(f"{file} has no matrix `directions` of (directions, features)", f"It has {known}.")
    weight = tensors[name].float()
    bias = tensors.get("bias", torch.zeros(len(weight))).float()
    if bias.shape != (len(weight),):
        raise UsageError(f"{file}: bias is {tuple(bias.shape)}, and there are {len(weight)} directions in {name}")
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise UsageError(f"{file} has values that are not finite")
    digest = hashlib.sha256(content).hexdigest()
    return Latents(f"{len(weight)} directions of {file.name}", weight, bias, relu, digest)


def _bytes(file: Path) -> bytes:
    try:
        with open_regular(file) as opened:
            return opened.read()
    except OSError as error:
        raise UsageError(f"cannot read target.directions {file}: {error.strerror or error}") from error


def _tensors(file: Path, content: bytes) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        hint = "safetensors.torch.save_file({'directions': matrix}, file) writes one."
        raise UsageError(f"{file} is no safetensors file: {error}", hint) from error
