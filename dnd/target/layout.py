"""How a layer's output is read: which axes hold images, units and places, and one number per image.

| output | units | map |
|---|---|---|
| (B, C, H, W) | channels | the channel, where H x W could tile the input |
| (B, H, W, C) | channels, where the module says so or only axes 1-2 could tile the input (Swin) | the channel |
| (B, N, C), (N, B, C) | features | the patch tokens on their grid; class and register tokens are left out |
| (B, C, N) | channels, where the module says so or the places follow the image | as for tokens |
| (B, T, N, C) of a Linear (windows, blocks) | features | only where T x N could tile the input |
| (B, C) | features, logits | none |

What could be a map is one where changes of the input show at their places, see `dnd.target.locality`.
`target.layout` in a run file says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from dnd.config.layout import Axes

Pooling = Literal["mean", "max"]

_KEPT_BITS = 17
"""Of float32's 24 significant ones."""


def first_tensor(output: object) -> torch.Tensor | None:
    """The tensor that a module gave, or the first in its tuple or ModelOutput."""
    if isinstance(output, torch.Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)


def units_second(output: torch.Tensor, axes: Axes, rows: int) -> torch.Tensor:
    """A view (B, U, ...) of an output for `rows` images; the other axes in their order, but width last."""
    words = [word for axis in axes for word in axis]
    for place, axis in enumerate(axes):
        if len(axis) == 2:  # one axis at most
            folded = output.shape[place] // rows
            sizes = (rows, folded) if axis[0] == "batch" else (folded, rows)
            output = output.reshape(*output.shape[:place], *sizes, *output.shape[place + 1 :])
    rest = [place for place, word in enumerate(words) if word not in ("batch", "units")]
    rest.sort(key=lambda place: words[place] == "width")
    return output.permute(words.index("batch"), words.index("units"), *rest)


@dataclass(frozen=True)
class Reading:
    """How one layer's output becomes its units' activations."""

    axes: Axes
    """What the axes of the output hold."""
    size: int
    """Units."""
    grid: tuple[int, int] | None = None
    """Of the map (h, w); None where units have none."""
    extra: tuple[int, int] = (0, 0)
    """Where in the tokens those begin that are no patches, and how many they are."""
    run: int = 0
    """Which of its runs in a forward pass counts, from 0."""
    runs: int = 1
    note: str = ""
    """Why units have no map, where they might have had one."""

    def of(self, output: torch.Tensor, rows: int) -> torch.Tensor:
        """The output for `rows` images, units second: (B, U, h, w) with maps, (B, U, N) or (B, U) without."""
        units = units_second(output, self.axes, rows)
        if self.grid is None:
            return units.flatten(2) if units.ndim > 3 else units
        return self.on_grid(units)

    def on_grid(self, units: torch.Tensor) -> torch.Tensor:
        """(B, U, N) or (B, U, h, w) -> (B, U, h, w): tokens that are no patches are left out."""
        assert self.grid is not None
        start, count = self.extra
        if count:
            units = torch.cat([units[:, :, :start], units[:, :, start + count :]], 2)
        return units.reshape(*units.shape[:2], *self.grid)

    @property
    def tokens(self) -> int:
        """How many places a map is made of, those left out included."""
        return self.grid[0] * self.grid[1] + self.extra[1] if self.grid else 0

    def __str__(self) -> str:
        """In one sentence, for people."""
        place = next(number for number, axis in enumerate(self.axes) if "units" in axis)
        parts = [f"units = axis {place} ({self.size})"]
        parts += [f"images = axis {n}" for n, axis in enumerate(self.axes) if "batch" in axis and (n or len(axis) > 1)]
        parts.append(f"map {self.grid[0]}x{self.grid[1]}" if self.grid else "no map")
        if self.note:
            parts[-1] += f" ({self.note})"
        if self.extra[1]:
            kind = "class token" if self.extra[1] == 1 else "class and register tokens"
            parts.append(f"{self.extra[1]} {kind} left out")
        if self.runs > 1:
            parts.append(f"run {self.run + 1} of {self.runs}")
        return ", ".join(parts)


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
