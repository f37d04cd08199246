"""One copy of the target on one device, its layers hooked; leaving it restores mode, device and hooks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Self, cast

import torch
from torch.utils.hooks import RemovableHandle

from dnd.config.run import LayerSettings
from dnd.errors import UsageError
from dnd.target.layers import inner
from dnd.target.layout import Reading, first_tensor, named_parts, tensors_of

Read = Callable[[str, int, torch.Tensor], None]
"""Gets a layer's name and its output, units second, during a forward pass."""
See = Callable[[str, torch.nn.Module, torch.Tensor, bool], None]
"""Gets a layer's name, the layer, the tensor it gave, and whether that is all it gave."""


def _nothing(layer: str, part: torch.nn.Module, output: torch.Tensor, alone: bool) -> None:
    """Between forward passes."""


class Replica:
    """One forward pass at a time; several replicas may be at work at once."""

    def __init__(self, module: torch.nn.Module, device: torch.device, layers: Mapping[str, LayerSettings]) -> None:
        self.module, self.device, self.layers = module, device, layers
        self.readings: Mapping[str, Reading] = {}
        """Of the layers, before `forward` is called."""
        self._see: See = _nothing
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        modules = dict(self.module.named_modules(remove_duplicate=False))
        with ExitStack() as undo:
            undo.enter_context(evaluating(self.module))
            undo.enter_context(_on_device(self.module, self.device))
            undo.enter_context(_uncompiled())
            for name, settings in self.layers.items():
                undo.callback(self._watched(name, modules[name], settings).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _watched(self, name: str, module: torch.nn.Module, settings: LayerSettings) -> RemovableHandle:
        def take(value: object) -> None:
            found = first_tensor(value, settings.output)
            if found is None:
                raise UsageError(*_missing(name, value, settings))
            if found.is_complex() or not found.numel():
                what = f"complex numbers, {found.dtype}" if found.numel() else f"no values: {tuple(found.shape)}"
                raise UsageError(f"layer {name} gives {what}", "Choose the layer before or after it.")
            self._see(name, module, found, found is value)

        def before(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            value = {**{str(n): one for n, one in enumerate(inputs)}, **named}
            take(next(iter(value.values())) if len(value) == 1 and settings.output is None else value)

        def after(module: torch.nn.Module, inputs: object, output: object) -> None:
            take(output)

        if settings.at == "input":
            return module.register_forward_pre_hook(before, with_kwargs=True)
        return module.register_forward_hook(after)

    def watch(self, batch: torch.Tensor, see: See) -> None:
        """Run (B, C, H, W); `see` is called for every run of every layer, in their order."""
        self._see = see
        dtype = next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)
        on_cuda = self.device.type == "cuda"
        with torch.no_grad(), torch.cuda.device(self.device) if on_cuda else nullcontext():
            try:
                inner(self.module)(batch.to(self.device, dtype, copy=True))  # which it may change in place
            finally:
                self._see = _nothing

    def forward(self, batch: torch.Tensor, read: Read) -> None:
        """Run (B, C, H, W); `read` is called for each layer with that of its runs which counts: with the place
        of the first image and the units of some, at most of all."""
        runs: Counter[str] = Counter()

        def see(name: str, part: torch.nn.Module, output: torch.Tensor, alone: bool) -> None:
            reading = self.readings[name]
            if runs[name] == reading.run:
                for first, units in reading.parts(output, len(batch)):
                    read(name, first, units)
            runs[name] += 1

        self.watch(batch, see)
        for name, reading in self.readings.items():
            if runs[name] != reading.runs:
                raise UsageError(
                    f"layer {name} runs {runs[name]} times for some images, {reading.runs} times for others",
                    "Choose a layer that runs as often for each.",
                )


def _missing(name: str, value: object, settings: LayerSettings) -> tuple[str, str]:
    """What is wrong with a layer that gives no such tensor, and a hint."""
    verb = "gets" if settings.at == "input" else "gives"
    count = sum(1 for _ in tensors_of(value))
    if settings.output is None or not count:
        return f"layer {name} {verb} no tensor but {type(value).__name__}", "Choose the layer before or after it."
    names = list(named_parts(value))
    known = f"By name: {', '.join(map(str, names))}." if names else ""
    return f"layer {name} {verb} no tensor {settings.output!r}", f"Its {count} tensors are 0 to {count - 1}. {known}"


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


def _uncompiled() -> AbstractContextManager[object]:
    """What torch.compile made runs as it was written, so that its layers can be seen."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return cast(AbstractContextManager[object], torch.compiler.set_stance("force_eager"))


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
