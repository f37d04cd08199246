"""Reading a layer's output: which axis holds the units, where the map is, and one number per image.

| output | units | map |
|---|---|---|
| (B, C, H, W) | channels | the channel |
| (B, H, W, C) | channels, where only axes 1-2 have the input's aspect (Swin), or where configured | the channel |
| (B, N, C) | features | the patch tokens on their grid; class and register tokens, which come first, are left out |
| (B, N, C), N fits no grid | features | none; all tokens are pooled |
| (B, C, N) of a Conv1d or BatchNorm1d | channels | none; all places are pooled |
| (B, T, N, C) of a Linear (windows, blocks) | features | only where T x N has the input's aspect |
| (B, C) | features, logits | none |

A module that says how wide its output is (`out_features`, `out_channels`, `num_features`, `normalized_shape`) says
which axis holds the units; the shape decides only for modules that do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import torch

from dnd.errors import UsageError

Pooling = Literal["mean", "max"]

_EXTRA_TOKENS = (0, 1, 2, 4, 5, 8, 9)
"""Class, distillation and register tokens in front of the patches: SigLIP 0, ViT 1, DeiT 2, DINOv3 5, ..."""
_KEPT_BITS = 17
"""Of float32's 24 significant ones."""


def first_tensor(output: object) -> torch.Tensor | None:
    """The tensor that a module gave, or the first in its tuple or ModelOutput."""
    if isinstance(output, torch.Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


@lru_cache
def token_grid(tokens: int, frame: tuple[int, int]) -> tuple[int, int, int] | None:
    """(extra tokens, grid height, grid width) of a sequence over an input of (H, W); None if nothing fits.

    First square patches that tile the input exactly, then any grid of its aspect; the fewest extra tokens win.
    """
    height, width = frame
    fits = [
        (extra, rows, (tokens - extra) // rows)
        for extra in _EXTRA_TOKENS
        for rows in range(1, tokens - extra + 1)
        if (tokens - extra) % rows == 0 and _has_aspect(rows, (tokens - extra) // rows, frame)
    ]
    tiles = [g for g in fits if height % g[1] == 0 and width % g[2] == 0 and height * g[2] == width * g[1]]
    return next(iter(tiles + fits), None)


def _has_aspect(rows: int, columns: int, frame: tuple[int, int]) -> bool:
    """Whether a grid could come from square steps over the frame, sides rounded."""
    height, width = frame
    return abs(columns * height - rows * width) < max(height, width)


def unit_axis(module: torch.nn.Module, output: torch.Tensor) -> int | None:
    """The axis of a module's output that is as wide as the module says; None where it says nothing, or something else.

    Channels come second in what convolves or normalizes channels, last in what works on features.
    """
    if output.ndim < 3:
        return None
    for attribute, axis in (("out_channels", 1), ("num_features", 1), ("num_channels", 1), ("out_features", -1)):
        width = getattr(module, attribute, None)
        if isinstance(width, int) and output.shape[axis] == width:
            return axis % output.ndim
    shape = getattr(module, "normalized_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 1:
        return None
    here = [axis for axis in (1, output.ndim - 1) if output.shape[axis] == shape[0]]
    if len(here) < 2:
        return here[0] if here else None
    return 1 if type(module).__name__.endswith("2d") else output.ndim - 1  # norms of channels, as timm names them


def by_unit(
    output: torch.Tensor, frame: tuple[int, int], channels_last: bool = False, axis: int | None = None
) -> torch.Tensor:
    """A layer's output, units second: (B, U, h, w) with maps, (B, U, N) or (B, U) without. `axis` holds the units where
    that is known, see `unit_axis`."""
    if axis is not None and not channels_last:
        if output.ndim == 3 and axis == 1:
            return output
        if output.ndim >= 4:
            units = output.movedim(axis, 1)
            maps = output.ndim == 4 and _has_aspect(units.shape[2], units.shape[3], frame)
            return units if maps else units.flatten(2)
    if output.ndim == 4:
        _, a, b, c = output.shape
        first, last = _has_aspect(b, c, frame), _has_aspect(a, b, frame)
        return output.permute(0, 3, 1, 2) if channels_last or (last and not first) else output
    if output.ndim == 3:
        units = output.transpose(1, 2)  # (B, C, N)
        grid = token_grid(units.shape[2], frame)
        if grid is None:
            return units
        extra, rows, columns = grid
        return units[:, :, extra:].reshape(*units.shape[:2], rows, columns)
    if output.ndim == 2:
        return output
    raise UsageError(
        f"its output has shape {tuple(output.shape)}; units need (B, C, H, W), (B, N, C) or (B, C)",
        "Choose the layer before or after it.",
    )


def pool(units: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(B, U, ...) -> float32 (B, U), a new tensor on the CPU."""
    if units.ndim > 2:
        flat = units.flatten(2)
        units = flat.mean(2, dtype=torch.float32) if pooling == "mean" else flat.amax(2)
    return rounded(units.detach().float()).cpu()


def rounded(values: torch.Tensor) -> torch.Tensor:
    """float32 rounded to 17 significant bits (1 in 131,072); a new tensor.

    Float noise between batch sizes, thread counts and devices is below that, so equal activations stay equal and
    the order of the images decides between them.
    """
    mantissa, exponent = torch.frexp(values)
    mantissa.mul_(2**_KEPT_BITS).round_().div_(2**_KEPT_BITS)
    return torch.ldexp(mantissa, exponent)
