"""What a network does: its layers' outputs on fixed inputs, which hooks, attributes and patches change as well."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping

import numpy as np
import torch

from dnd.errors import UsageError
from dnd.target.layout import Reading
from dnd.target.preprocess import Preprocess, probe_image
from dnd.target.replica import Replica

_NOISES = 3
_NOISE, _MIXED = 1e-5, 0.2
"""What rounding may change, in fractions of a layer's largest value; and what other images in a batch may, in fractions
of the largest difference between images: a network may be quantized by the range of a batch."""
_AGAIN = 6
"""Further passes where the first one drew random numbers."""
_PROJECTIONS = 4
"""Numbers that stand for a layer's output. Few, as each may round differently in another number of threads."""
_STEP = 2**-10
"""They are rounded to that fraction of the output's norm; float noise is a thousandth of it."""

Outputs = dict[str, torch.Tensor]


def behaviour(module: torch.nn.Module, preprocess: Preprocess, readings: Mapping[str, Reading]) -> str:
    """sha256 over how layers are read and over their rounded outputs for a made-up image and noise, in eval mode on the
    module's own device.

    Raises UsageError where the same input gives another output the second time, or beside other images.
    """
    image = preprocess(probe_image()).detach().cpu()
    chance = torch.Generator().manual_seed(0)
    noise = torch.randn((_NOISES, *image.shape), generator=chance) * image.float().std() + image.float().mean()
    batch = torch.cat([image[None], noise.to(image.dtype)])
    first = next(module.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    coarse = 0.0 if first is None or not first.is_floating_point() else torch.finfo(first.dtype).eps
    rounding = max(_NOISE, 8 * coarse)
    with Replica(module, device, {layer: one.settings for layer, one in readings.items()}) as replica:
        replica.readings = readings
        before = _random_state()
        once = _outputs(replica, batch)
        for _ in range(1 if _random_state() == before else _AGAIN):
            _check_chance(once, _outputs(replica, batch), rounding)
        _check_company(once, replica, batch, rounding)
    digest = hashlib.sha256()
    for layer, reading in readings.items():
        of = reading.latents.digest if reading.latents else ""
        digest.update(f"{layer} {reading} {of} {tuple(once[layer].shape[1:])} {_rounded(once[layer])}\n".encode())
    return digest.hexdigest()


def _check_chance(once: Outputs, again: Outputs, rounding: float) -> None:
    for layer, values in once.items():
        if not _same(values, again[layer], rounding):
            raise UsageError(
                f"layer {layer} gives other activations each time for the same image",
                "There is chance in the forward pass: dropout that eval() leaves on, random masks. Turn it off.",
            )


def _check_company(once: Outputs, replica: Replica, batch: torch.Tensor, rounding: float) -> None:
    """An image must give the same in another place of a batch, and beside other images."""
    moved = _outputs(replica, batch.roll(1, 0))
    flat = batch[:1].mean().expand_as(batch[1:])
    beside = _outputs(replica, torch.cat([batch[:1], flat]))
    for layer, values in once.items():
        placed = _same(values, moved[layer].roll(-1, 0), 20 * rounding)
        allowed = _MIXED * _peak(values - values.mean(0)) + 20 * rounding * _peak(values)
        alone = torch.allclose(values[:1], beside[layer][:1], rtol=0, atol=allowed, equal_nan=True)
        if not placed or not alone:
            where = "beside other images" if placed else "in another place of a batch"
            raise UsageError(
                f"layer {layer} gives other activations for the same image {where}",
                "It must see each image by itself: BatchNorm without running statistics does not, nor does noise from "
                "a fixed seed.",
            )


def _random_state() -> tuple[str, ...]:
    """Of the random numbers that a forward pass may draw without anything said of it."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *on_gpus)]
    return tuple(str(one) for one in (*states, np.random.get_state(), random.getstate()))


def _outputs(replica: Replica, batch: torch.Tensor) -> Outputs:
    found: dict[str, list[torch.Tensor]] = {}

    def keep(layer: str, place: int, units: torch.Tensor) -> None:
        found.setdefault(layer, []).append(units.detach().to("cpu", torch.float64, copy=True))

    replica.forward(batch, keep)
    return {layer: torch.cat(pieces) for layer, pieces in found.items()}


def _same(one: torch.Tensor, other: torch.Tensor, noise: float) -> bool:
    """Whether two outputs differ by no more than a fraction of the largest value."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=noise * _peak(one), equal_nan=True)


def _peak(values: torch.Tensor) -> float:
    """The largest finite value."""
    return float(values.nan_to_num(0, 0, 0).abs().max()) if values.numel() else 0.0


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
