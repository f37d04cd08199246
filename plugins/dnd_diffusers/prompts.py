"""Each prompt embedded once: a concept's images share it, and come one after the other."""

from __future__ import annotations

from collections import OrderedDict
from inspect import BoundArguments, signature
from typing import Any

REMEMBERED = 32
"""Prompts whose embeddings are kept, the latest: with FLUX's T5 in bfloat16 4 MB each."""
_OF_EACH = ("prompt", "negative_prompt")
"""What the arguments begin with that have a text for each image."""


def embed_once(pipeline: Any) -> None:
    """Have the pipeline embed each prompt by itself and remember it. A prompt's embedding then depends on no other in
    the batch. Where embeddings are as long as the texts, and so of several shapes, a batch is embedded as before."""
    encode = getattr(pipeline, "encode_prompt", None)
    if encode is None:
        return
    takes, known = signature(encode), OrderedDict[str, tuple[Any, ...]]()

    def embedded(given: BoundArguments) -> tuple[Any, ...]:
        key = repr(given)
        known[key] = known.pop(key) if key in known else tuple(encode(*given.args, **given.kwargs))
        while len(known) > REMEMBERED:
            known.popitem(last=False)
        return known[key]

    def encoded(*args: Any, **named: Any) -> Any:
        given = takes.bind(*args, **named)
        prompts = given.arguments.get("prompt")
        if not isinstance(prompts, list):
            return encode(*args, **named)
        rows = [embedded(_of_one(given, place, len(prompts))) for place in range(len(prompts))]
        try:
            return tuple(_joined(column) for column in zip(*rows, strict=True))
        except _UnequalError:
            return encode(*args, **named)

    pipeline.encode_prompt = encoded


class _UnequalError(Exception):
    pass


def _of_one(given: BoundArguments, place: int, n: int) -> BoundArguments:
    """The arguments for one of n prompts."""

    def own(name: str, value: Any) -> Any:
        of_each = name.startswith(_OF_EACH) and isinstance(value, list) and len(value) == n
        return [value[place]] if of_each else value

    arguments = OrderedDict((name, own(name, value)) for name, value in given.arguments.items())
    return BoundArguments(given.signature, arguments)


def _joined(column: tuple[Any, ...]) -> Any:
    """The batch's tensor of one for each prompt, (1, ...); what is alike for all, such as positions, once."""
    import torch

    first = column[0]
    if first is None or (isinstance(first, torch.Tensor) and first.ndim and len(first) != 1):
        return first
    if not isinstance(first, torch.Tensor) or any(one.shape != first.shape for one in column):
        raise _UnequalError
    return torch.cat(column)
