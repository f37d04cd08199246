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

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

import torch

from dnd.config.layout import Axes
from dnd.config.run import LayerSettings
from dnd.target.latents import Latents

Pooling = Literal["mean", "max", "top", "centre"]
_AT_ONCE = 64 << 20
"""Bytes of latents of some images."""
_TOP = 0.1
"""Share of the cells that `top` takes the mean of."""

_KEPT_BITS = 17
"""Of float32's 24 significant ones."""


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    """The tensors in what a module gave: itself, or those in its tuple, dict or ModelOutput."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    named = named_parts(value)
    for part in named.values() if named else value if isinstance(value, (tuple, list)) else ():
        yield from tensors_of(part)


def named_parts(value: object) -> Mapping[str, object]:
    """What a module gave by name: of a dict, a ModelOutput, a named tuple or a dataclass."""
    if isinstance(value, Mapping):
        return value
    names = [one.name for one in fields(value)] if is_dataclass(value) else getattr(value, "_fields", ())
    return {name: getattr(value, name, None) for name in names}


def first_tensor(value: object, which: int | str | None = None) -> torch.Tensor | None:
    """The first tensor in what a module gave, or the one at a place or under a name; None where there is none."""
    if isinstance(which, str):
        return first_tensor(named_parts(value).get(which))
    found = tensors_of(value)
    return next(found, None) if which is None else dict(enumerate(found)).get(which)


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
    n_tokens: int = 0
    """Length of the sequence where the layer gives one."""
    settings: LayerSettings = field(default_factory=LayerSettings)
    latents: Latents | None = None
    """What units are made of the layer's features, if they are not the features themselves."""

    def parts(self, output: torch.Tensor, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """The output for `rows` images, units second: (B, U, h, w) with maps, (B, U, N) or (B, U) without.

        Many latents come a few images at a time, with the place of the first: together they would not fit into memory.
        """
        units = self._places(units_second(output, self.axes, rows))
        if self.latents is None:
            yield 0, self._of(units)
            return
        step = max(1, _AT_ONCE // (4 * self.size * units[0, 0].numel()))
        for first in range(0, len(units), step):
            yield first, self._of(units[first : first + step])

    def _of(self, units: torch.Tensor) -> torch.Tensor:
        if self.settings.heads:
            units = units.unflatten(1, (self.size, -1)).float().norm(dim=2)  # type: ignore[no-untyped-call]
        if self.latents is not None:
            units = self.latents.of(units)
        if self.settings.sign == "positive":
            return units
        return -units if self.settings.sign == "negative" else units.abs()

    def _places(self, units: torch.Tensor) -> torch.Tensor:
        """(B, U, ...) with the places that count."""
        which = self.settings.tokens
        if self.n_tokens and which != "patches":
            if which == "all":
                return units
            rest = [word for axis in self.axes for word in axis if word not in ("batch", "units")]
            return units.select(2 + rest.index("tokens"), self.extra[0] if which == "class" else int(which))
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

    def __str__(self) -> str:
        """In one sentence, for people."""
        place = next(number for number, axis in enumerate(self.axes) if "units" in axis)
        what = f"{self.size} heads" if self.settings.heads else str(self.size)
        what = self.latents.name if self.latents else what
        parts = [f"units = axis {place} ({what})"]
        parts += [f"images = axis {n}" for n, axis in enumerate(self.axes) if "batch" in axis and (n or len(axis) > 1)]
        parts.append(self._places_in_words())
        if self.runs > 1:
            parts.append(f"run {self.run + 1} of {self.runs}")
        if self.settings.at == "input":
            parts.append("of the module's input")
        if self.settings.output is not None:
            parts.append(f"tensor {self.settings.output}")
        if self.settings.sign != "positive":
            parts.append("negated" if self.settings.sign == "negative" else "absolute values")
        return ", ".join(parts)

    def _places_in_words(self) -> str:
        which = self.settings.tokens
        if self.n_tokens and which != "patches":
            named = {
                "class": f"the class token alone, token {self.extra[0]}",
                "all": f"all {self.n_tokens} tokens pooled",
            }
            return named.get(str(which), f"token {which} of {self.n_tokens} alone")
        words = f"map {self.grid[0]}x{self.grid[1]}" if self.grid else "no map"
        if self.note:
            words += f" ({self.note})"
        if self.extra[1]:
            kind = "class token" if self.extra[1] == 1 else "class and register tokens"
            words += f", {self.extra[1]} {kind} left out"
        return words


def pool(units: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(B, U, ...) -> float32 (B, U), a new tensor on the CPU."""
    if units.ndim > 2:
        units = _one_number(units, pooling)
    return rounded(units.detach().float()).cpu()


def _one_number(units: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    flat = units.flatten(2)
    match pooling:
        case "mean":
            return flat.mean(2, dtype=torch.float32)
        case "max":
            return flat.amax(2)
        case "top":
            return flat.topk(math.ceil(_TOP * flat.shape[2]), 2).values.mean(2, dtype=torch.float32)
        case "centre":
            return units[:, :, units.shape[2] // 2, units.shape[3] // 2]


def rounded(values: torch.Tensor) -> torch.Tensor:
    """float32 rounded to 17 significant bits (1 in 131,072); a new tensor.

    Float noise between batch sizes, thread counts and devices is below that, so equal activations stay equal and
    the order of the images decides between them.
    """
    mantissa, exponent = torch.frexp(values)
    mantissa.mul_(2**_KEPT_BITS).round_().div_(2**_KEPT_BITS)
    return torch.ldexp(mantissa, exponent)
