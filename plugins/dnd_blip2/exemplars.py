"""The summarizer "blip2-exemplars": one BLIP-2 describes all exemplars of a unit together, and nothing is captioned.

At every token the distributions that the exemplars give are multiplied (the mean of their log-probabilities: a
product of experts), so that only what all of them show stays likely. The likeliest text comes first, then texts
drawn from the product. A text is split at prepositions into its noun phrases, and those are the candidates.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from dnd import api
from dnd_blip2.captioner import Blip2Captioner, Blip2Config

MAX_WORDS = 5
_ARTICLES = ("a", "an", "the", "some", "two", "several")
_CUT = re.compile(
    r"[,.;:]|\b(?:and|or|on|in|with|at|of|by|to|from|over|under|near|next|behind|beside|between|above|below|against"
    r"|inside|into|through|around|is|are|that|which|there|while)\b"
)
"""Where one noun phrase of an English description ends and another begins."""


class ExemplarsConfig(Blip2Config):
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("captioner",)}
    max_new_tokens: int = Field(24, ge=1)
    temperature: float = Field(1.0, gt=0, le=5)
    """Of the texts after the first."""
    tries: int = Field(12, ge=1, le=100)
    """Texts that are drawn, at most, for the candidates asked for."""
    batch_size: int = Field(64, ge=1)
    """Images at a time, which are those of one or more texts; at least all exemplars of a unit go through together."""


class Blip2Exemplars(api.Summarizer):
    """One BLIP-2 describes all exemplars of a unit together; nothing is captioned."""

    name = "blip2-exemplars"
    reads = "images"
    requires = ("transformers", "accelerate")
    Config = ExemplarsConfig
    config: ExemplarsConfig
    batch_size = 8

    def __init__(self, config: ExemplarsConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self._blip2 = Blip2Captioner(config, runtime)

    def chosen(self) -> Mapping[str, Any]:
        return self._blip2.chosen()

    def memory(self) -> int:
        return self._blip2.memory()

    def load(self) -> None:
        self._blip2.load()

    def close(self) -> None:
        self._blip2.close()

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        return [self._describe(request) for request in requests]

    def _describe(self, request: api.SummaryRequest) -> list[str]:
        from dnd_hf.sampling import SeededSampler

        images = [picture.open() for picture in request.images]
        if not images:
            raise api.ItemError("a unit without exemplars cannot be described")
        seeds: list[int | None] = [None, *(_derive(request.seed, number) for number in range(self.config.tries))]
        at_once = max(1, self.config.batch_size // len(images))
        first: list[str] = []
        drawn: Counter[str] = Counter()
        for start in range(0, len(seeds), at_once):
            part = seeds[start : start + at_once]
            temperatures = [0.0 if seed is None else self.config.temperature for seed in part]
            draw = SeededSampler(
                [seed or 0 for seed in part], temperatures, self.config.max_new_tokens + 1, together=len(images)
            )
            texts = self._blip2.describe(images * len(part), draw)[:: len(images)]
            if start == 0:
                first = phrases(texts.pop(0))
            drawn.update(phrase for text in texts for phrase in dict.fromkeys(phrases(text)))
            if len({*first, *drawn}) >= request.n_concepts:
                break
        found = list(dict.fromkeys([*first, *(phrase for phrase, _ in drawn.most_common())]))
        if not found:
            raise api.ItemError(f"{self.config.model} gave no phrase of 1-{MAX_WORDS} words for the unit's exemplars")
        return found[: request.n_concepts]


def phrases(text: str) -> list[str]:
    """The noun phrases of a description, in order, without articles; those longer than five words are left out."""
    found = []
    for part in _CUT.split(text.lower()):
        words = re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", part)
        while words and words[0] in _ARTICLES:
            words = words[1:]
        if 1 <= len(words) <= MAX_WORDS:
            found.append(" ".join(words))
    return list(dict.fromkeys(found))


def _derive(seed: int, number: int) -> int:
    """A seed for one text, 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed} text {number}".encode()).digest()[:8]) >> 1
