"""One copy of the target on one device, its layers hooked; leaving it restores mode, device and hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Self

import torch

from dnd.errors import UsageError
from dnd.target.layout import by_unit, first_tensor, unit_axis

Read = Callable[[str, torch.Tensor], None]
"""Gets a layer's name and its output, units second, during a forward pass."""


class Replica:
    """One forward pass at a time; several replicas may be at work at once."""

    def __init__(
        self, module: torch.nn.Module, device: torch.device, layers: Sequence[str], channels_last: Collection[str]
    ) -> None:
        self.module, self.device, self.layers, self.channels_last = module, device, layers, channels_last
        self._read: Read = lambda layer, units: None
        self._frame = (1, 1)
        self._runs: dict[str, int] = {}
        """How often each layer has run in this forward pass."""
        self._last: dict[str, int] = {}
        """How often in the one before: a module used in several places gives other shapes there; the last counts."""
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        modules = dict(self.module.named_modules())
        with ExitStack() as undo:
            undo.enter_context(evaluating(self.module))
            undo.enter_context(_on_device(self.module, self.device))
            for name in self.layers:
                undo.callback(modules[name].register_forward_hook(self._hook(name)).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _hook(self, name: str) -> Callable[[torch.nn.Module, object, object], None]:
        def hook(module: torch.nn.Module, inputs: object, output: object) -> None:
            self._runs[name] = self._runs.get(name, 0) + 1
            if self._runs[name] < self._last.get(name, 0):
                return
            found = first_tensor(output)
            if found is None:
                raise UsageError(f"layer {name} gives no tensor but {type(output).__name__}")
            try:
                axis = unit_axis(module, found) if found is output else None
                units = by_unit(found, self._frame, name in self.channels_last, axis)
            except UsageError as error:
                raise UsageError(f"layer {name}: {error}", error.hint) from None
            self._read(name, units)

        return hook

    def forward(self, batch: torch.Tensor, read: Read) -> None:
        """Run (B, C, H, W); `read` is called in the layers' order of running, in the first pass for every run of a
        layer, then for its last."""
        self._runs = {}
        self._read, self._frame = read, (batch.shape[-2], batch.shape[-1])
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        on_cuda = self.device.type == "cuda"
        with torch.no_grad(), torch.cuda.device(self.device) if on_cuda else nullcontext():
            self.module(batch.to(self.device, dtype, copy=True))  # which it may change in place
        if any(self._last.get(name, runs) != runs for name, runs in self._runs.items()):
            raise UsageError(f"layers run a different number of times for different images: {self._last}, {self._runs}")
        self._last = self._runs


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode; after it each part is in the mode that it was in."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def _on_device(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    first = next(module.parameters(), None)
    home = device if first is None else first.device
    if home != device:
        module.to(device)
    try:
        yield
    finally:
        if home != device:
            module.to(home)
