"""The identity of a network: what it is made of, what its layers give, and what its preprocess does."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from dnd.errors import UsageError
from dnd.target.behaviour import behaviour
from dnd.target.content import Content
from dnd.target.layout import Reading
from dnd.target.preprocess import Preprocess, probe_image


def fingerprint(
    module: torch.nn.Module, preprocess: Preprocess, readings: Mapping[str, Reading] = MappingProxyType({})
) -> str:
    """sha256 over the module's structure, weights, attributes, hooks and `forward` code, over what the layers read
    give for fixed inputs, and over what `preprocess` does.

    Raises UsageError for chance in the preprocess or in a layer, and for a preprocess whose values are not finite.
    """
    content = Content()
    content.module(module)
    image = probe_image()
    once, again = preprocess(image), preprocess(image)
    if not once.isfinite().all():
        raise UsageError(
            "the target's preprocess gives values that are not finite for a made-up image",
            "Look for a division by zero: a mean or deviation of the image itself, say.",
        )
    if not torch.equal(once, again):
        raise UsageError(
            "the target's preprocess gives another tensor each time for the same image",
            "Use the transform for evaluation: without random crops, flips or the like.",
        )
    content.add(once)
    if readings:
        content.add(behaviour(module, preprocess, readings))
    return content.hexdigest()


def foreign_hooks(module: torch.nn.Module) -> list[str]:
    """The forward hooks and pre-hooks on a network, "layer4: forward hook steer": they change what is labelled."""
    kinds = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
    return [
        f"{name or 'the network'}: {kind} {getattr(hook, '__qualname__', type(hook).__qualname__)}"
        for name, part in module.named_modules()
        for attribute, kind in kinds.items()
        for hook in getattr(part, attribute).values()
    ]
