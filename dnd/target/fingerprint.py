"""The identity of a network: what it is made of, what its layers give, and what its preprocess does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch

from dnd.errors import UsageError
from dnd.target.behaviour import behaviour
from dnd.target.content import Content
from dnd.target.layout import Reading
from dnd.target.preprocess import Preprocess, probe_image

_AGAIN = 8
"""Calls of a preprocess that must give the same: some of its chances are small."""
_SIZES = ((40, 56), (900, 700))
"""Of more made-up images: a preprocess may treat small and large ones in another way."""
_KINDS_OF_HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}


def fingerprint(
    module: torch.nn.Module, preprocess: Preprocess, readings: Mapping[str, Reading] = MappingProxyType({})
) -> str:
    """sha256 over the module's structure, weights, attributes, hooks and `forward` code, over what the layers read
    give for fixed inputs, and over what `preprocess` is and does.

    Raises UsageError for chance in the preprocess or in a layer, for a layer that mixes the images of a batch, and for
    a preprocess whose values are not finite.
    """
    content = Content()
    content.module(module)
    content.add(preprocess)
    content.add(dict(_global_hooks()))
    once = preprocess(probe_image())
    if not once.isfinite().all():
        raise UsageError(
            "the target's preprocess gives values that are not finite for a made-up image",
            "Look for a division by zero: a mean or deviation of the image itself, say.",
        )
    if not all(torch.equal(once, preprocess(probe_image())) for _ in range(_AGAIN)):
        raise UsageError(
            "the target's preprocess gives another tensor each time for the same image",
            "Use the transform for evaluation: without random crops, flips or the like.",
        )
    content.add([once, *(_tried(preprocess, *size) for size in _SIZES)])
    if readings:
        content.add(behaviour(module, preprocess, readings))
    return content.hexdigest()


def _tried(preprocess: Preprocess, width: int, height: int) -> torch.Tensor | str:
    """What it gives for another image; one on which it fails is left out of a run."""
    try:
        return preprocess(probe_image(width, height))
    except Exception as error:
        return type(error).__name__


def _global_hooks() -> Iterator[tuple[str, object]]:
    """Hooks on every module there is."""
    for kind in _KINDS_OF_HOOKS:
        for number, hook in enumerate(getattr(torch.nn.modules.module, f"_global{kind}", {}).values()):
            yield f"{kind} {number}", hook


def foreign_hooks(module: torch.nn.Module) -> list[str]:
    """The forward hooks and pre-hooks on a network, "layer4: forward hook steer": they change what is labelled."""
    own = [
        f"{name or 'the network'}: {words} {_name_of(hook)}"
        for name, part in module.named_modules()
        for attribute, words in _KINDS_OF_HOOKS.items()
        for hook in getattr(part, attribute).values()
    ]
    return own + [
        f"every module: {_KINDS_OF_HOOKS[kind.split()[0]]} {_name_of(hook)}" for kind, hook in _global_hooks()
    ]


def _name_of(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))
