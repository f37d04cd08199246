"""Units set to zero in a network for as long as a `with` lasts.

    with without(module, {"layer4": [3, 17]}):
        module(batch)  # those channels of layer4 give 0

Works through forward hooks: no weight is touched, and on leaving the module is, bit for bit, what it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from dnd.errors import UsageError
from dnd.target.layout import by_unit, first_tensor, unit_axis

Units = Mapping[str, Sequence[int]]
"""Layer -> its units."""


@contextmanager
def without(module: torch.nn.Module, units: Units) -> Iterator[None]:
    """Zero some units. Raises UsageError for a layer that does not exist, or, in a forward pass, for a unit that does
    not or an output that cannot be read."""
    layers = dict(module.named_modules())
    unknown = [layer for layer in units if layer not in layers]
    if unknown:
        raise UsageError(f"{type(module).__name__} has no layer {unknown[0]!r}", "Is it the network of this run?")
    frame = [1, 1]

    def note_frame(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor):
            frame[:] = inputs[0].shape[-2:]

    with ExitStack() as undo:
        undo.callback(module.register_forward_pre_hook(note_frame).remove)
        for layer, indices in units.items():
            if indices:
                hook = _hook(layer, list(indices), frame)
                undo.callback(layers[layer].register_forward_hook(hook).remove)
        yield


def _hook(layer: str, indices: Sequence[int], frame: Sequence[int]) -> Any:
    def hook(module: torch.nn.Module, inputs: object, output: object) -> object:
        found = first_tensor(output)
        if found is None:
            raise UsageError(f"layer {layer} gives no tensor but {type(output).__name__}")
        changed = found.clone()
        # By unit only where a view can be had: tokens keep their class and register tokens, which go too.
        axis = unit_axis(module, changed) or (2 if changed.ndim == 3 else None)
        view = by_unit(changed, (frame[0], frame[1])) if axis is None else changed.movedim(axis, 1)
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
