"""What a network does: its layers' outputs on fixed inputs, which hooks, attributes and patches change as well."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch

from dnd.errors import UsageError
from dnd.target.layout import Reading
from dnd.target.preprocess import Preprocess, probe_image
from dnd.target.replica import Replica

_NOISES = 3
_PROJECTIONS = 4
"""Numbers that stand for a layer's output. Few, as each may round differently in another number of threads."""
_STEP = 2**-10
"""They are rounded to that fraction of the output's norm; float noise is a thousandth of it."""

Outputs = dict[str, torch.Tensor]


def behaviour(module: torch.nn.Module, preprocess: Preprocess, readings: Mapping[str, Reading]) -> str:
    """sha256 over how layers are read and over their rounded outputs for a made-up image and noise, in eval mode on the
    module's own device.

    Raises UsageError where the same input gives another output the second time.
    """
    image = preprocess(probe_image()).detach().cpu()
    chance = torch.Generator().manual_seed(0)
    noise = torch.randn((_NOISES, *image.shape), generator=chance) * image.float().std() + image.float().mean()
    batch = torch.cat([image[None], noise.to(image.dtype)])
    first = next(module.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    with Replica(module, device, {layer: one.settings for layer, one in readings.items()}) as replica:
        replica.readings = readings
        once, again = _outputs(replica, batch), _outputs(replica, batch)
    for layer, values in once.items():
        if not _same(values, again[layer]):
            raise UsageError(
                f"layer {layer} gives other activations each time for the same image",
                "There is chance in the forward pass: dropout that eval() leaves on, random masks. Turn it off.",
            )
    digest = hashlib.sha256()
    for layer, reading in readings.items():
        of = reading.latents.digest if reading.latents else ""
        digest.update(f"{layer} {reading} {of} {tuple(once[layer].shape[1:])} {_rounded(once[layer])}\n".encode())
    return digest.hexdigest()


def _outputs(replica: Replica, batch: torch.Tensor) -> Outputs:
    found: Outputs = {}

    def keep(layer: str, units: torch.Tensor) -> None:
        found[layer] = units.detach().to("cpu", torch.float64, copy=True)

    replica.forward(batch, keep)
    return found


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two outputs differ by no more than float noise."""
    if one.shape != other.shape:
        return False
    finite = one.nan_to_num(0, 0, 0).abs()
    noise = 1e-4 * float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=noise, equal_nan=True)


def _rounded(values: torch.Tensor) -> list[float]:
    """A few seeded projections of an output, in steps of its norm, and the norm itself."""
    flat = values.nan_to_num(1e3, 1e6, -1e6).flatten()
    peak = float(flat.abs().max()) if flat.numel() else 0.0
    if peak == 0:
        return []
    flat = flat / peak  # or squares of what is huge, or tiny, would not be finite, or zero
    norm = float(flat.norm())
    chance = torch.Generator().manual_seed(1)
    signs = torch.randint(0, 2, (_PROJECTIONS, len(flat)), generator=chance).double() * 2 - 1
    size = round((math.log2(peak) + math.log2(norm)) / _STEP / 4) * 4
    return [size, *((signs @ flat) / norm / _STEP).round().tolist()]
