"""What the chats of a batch begin with, the instructions and examples, goes through the model once for all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import torch

_WORTH = 32
"""Tokens from which on a common beginning is kept."""


class Prefix:
    """Keys and values of the beginning that chats share, and the inputs that go on from there."""

    def __init__(self, model: Any, device: str, pad: int) -> None:
        self._model, self._device, self._pad = model, device, pad
        self._tokens: list[int] = []
        self._cache: Any = None
        self._keeps = True
        """Whether the model's cache serves, as far as is known."""

    @torch.inference_mode()
    def inputs(self, prompts: Sequence[list[int]]) -> dict[str, Any]:
        """Of `generate`, for prompts as tokens: filled up between what they share and what is their own."""
        self._share(prompts)
        n = len(self._tokens)
        longest = max(map(len, prompts))
        rows = [[*one[:n], *[self._pad] * (longest - len(one)), *one[n:]] for one in prompts]
        seen = [[1] * n + [0] * (longest - len(one)) + [1] * (len(one) - n) for one in prompts]
        inputs = {"input_ids": rows, "attention_mask": seen}
        found: dict[str, Any] = {name: torch.tensor(own, device=self._device) for name, own in inputs.items()}
        if n:
            found["past_key_values"] = copy.deepcopy(self._cache)
            found["past_key_values"].batch_repeat_interleave(len(prompts))
        return found

    def _share(self, prompts: Sequence[list[int]]) -> None:
        """Keep the cache where it is most of what all prompts begin with; else make it anew."""
        shared = _beginning(prompts)[: min(map(len, prompts)) - 1]  # of each something is left to answer
        usual = _beginning([self._tokens, shared])  # of this batch and those before
        if 2 * len(usual) >= len(shared):
            shared = usual
        if shared == self._tokens:
            return
        self._tokens, self._cache = [], None
        if self._keeps and len(prompts) > 1 and len(shared) >= _WORTH:
            cache = self._model(torch.tensor([shared], device=self._device), use_cache=True).past_key_values
            self._keeps = _is_plain(cache)
            if self._keeps:
                self._tokens, self._cache = shared, cache


def _beginning(prompts: Sequence[list[int]]) -> list[int]:
    return commonprefix(list(prompts))  # noqa: RUF071 (of lists)


def _is_plain(cache: Any) -> bool:
    """Whether it holds every token's keys and values: not those of a window, nor a state."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)
