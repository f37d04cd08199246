"""Units set to zero in a network for as long as a `with` lasts.

    with without(module, {"layer4": [3, 17]}):
        module(batch)  # those channels of layer4 give 0

Works through forward hooks: no weight is touched, and on leaving the module is, bit for bit, what it was.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import MappingProxyType
from typing import Any

import torch

from dnd.errors import UsageError
from dnd.target.layout import Reading, first_tensor, units_second
from dnd.target.reading import likely_axes

Units = Mapping[str, Sequence[int]]
"""Layer -> its units."""


@contextmanager
def without(
    module: torch.nn.Module, units: Units, readings: Mapping[str, Reading] = MappingProxyType({})
) -> Iterator[None]:
    """Zero some units; `readings` say how layers are read where a run was told so. Raises UsageError for a layer that
    does not exist, or, in a forward pass, for a unit that does not or an output that cannot be read."""
    layers = dict(module.named_modules())
    unknown = [layer for layer in units if layer not in layers]
    if unknown:
        raise UsageError(f"{type(module).__name__} has no layer {unknown[0]!r}", "Is it the network of this run?")
    for layer, reading in readings.items():
        settings = reading.settings
        if layer in units and (
            settings.at == "input" or settings.heads or reading.latents or settings.output is not None
        ):
            raise UsageError(
                f"the units of layer {layer} cannot be set to zero: {reading}",
                "Only features of a module's own output can.",
            )
    now = Pass()
    with ExitStack() as undo:
        undo.callback(module.register_forward_pre_hook(now.begin).remove)
        for layer, indices in units.items():
            if indices:
                hook = _hook(layer, list(indices), now, readings.get(layer))
                undo.callback(layers[layer].register_forward_hook(hook).remove)
        yield


class Pass:
    """The forward pass under way: how many images it is about, their size, and how often each layer has run."""

    def __init__(self) -> None:
        self.rows, self.frame, self.runs = 1, (1, 1), Counter[str]()

    def begin(self, _: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        self.runs.clear()
        if inputs and isinstance(inputs[0], torch.Tensor):
            self.rows, self.frame = len(inputs[0]), (inputs[0].shape[-2], inputs[0].shape[-1])

    def units(
        self, layer: str, part: torch.nn.Module, output: object, found: torch.Tensor, reading: Reading | None
    ) -> torch.Tensor | None:
        """A view of the tensor `found` in a layer's output, units second; None for a run that does not count."""
        self.runs[layer] += 1
        if reading is not None and self.runs[layer] != reading.run + 1:
            return None
        axes = reading.axes if reading else likely_axes(part, found, found is output, self.rows, self.frame)
        return units_second(found, axes, self.rows)


def _hook(layer: str, indices: Sequence[int], now: Pass, reading: Reading | None) -> Any:
    def hook(module: torch.nn.Module, inputs: object, output: object) -> object:
        found = first_tensor(output)
        if found is None:
            raise UsageError(f"layer {layer} gives no tensor but {type(output).__name__}")
        changed = found.clone(memory_format=torch.contiguous_format)
        view = now.units(layer, module, changed if found is output else output, changed, reading)
        if view is None:
            return None
        if max(indices) >= view.shape[1]:
            raise UsageError(
                f"layer {layer} has {view.shape[1]} units, and no unit {max(indices)}",
                "Is it the network of this run?",
            )
        view[:, list(indices)] = 0
        return _replaced(output, found, changed)

    return hook


def _replaced(output: object, old: torch.Tensor, new: torch.Tensor) -> object:
    """A layer's output with its first tensor replaced, as the same kind of thing."""
    if output is old:
        return new
    if isinstance(output, tuple | list):
        parts: list[Any] = [_replaced(part, old, new) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, Mapping):
        parts_by_name = OrderedDict((name, _replaced(part, old, new)) for name, part in output.items())
        return type(output)(**parts_by_name)
    return output
