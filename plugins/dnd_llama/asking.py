"""The conversation of a summarizer, whatever runs the model: simplify, ask, read, ask again."""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic

from dnd.api import Config, ItemError, Runtime, Summarizer, SummaryRequest
from dnd_llama.prompts import (
    BadAnswer,
    ListAnswer,
    Message,
    choose_messages,
    concept_messages,
    parse_concept,
    parse_simplified,
    simplify_messages,
)

_REMEMBERED = 65_536


@dataclass(frozen=True)
class Ask:
    """One chat to be answered."""

    messages: Sequence[Message]
    seed: int
    temperature: float
    """0 takes the likeliest token each time."""


@dataclass
class _Unit:
    """What has been asked and answered for one request."""

    request: SummaryRequest
    captions: list[str]
    found: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    last: str = ""


class AskingConfig(Config):
    """Settings of every summarizer that asks a chat model."""

    temperature: float = pydantic.Field(0.3, ge=0, le=2)
    simplify: bool = True
    """Have the model rewrite every caption first, without unnecessary detail."""
    asks: int = pydantic.Field(10, ge=1, le=100)
    """At most so many asks per unit for its distinct candidates; an answer that cannot be read spends one."""
    max_new_tokens: int = pydantic.Field(48, ge=8, le=512)
    batch_size: int = pydantic.Field(32, ge=1)
    """Chats in one forward pass."""


class AskingSummarizer(Summarizer):
    """Everything but the model: a subclass answers chats."""

    Config = AskingConfig

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size
        self._simplified: OrderedDict[str, str] = OrderedDict()

    @abstractmethod
    def answer(self, asks: Sequence[Ask]) -> list[str]:
        """The model's answer to each chat. It depends on the ask alone, not on the others around it."""

    def summarize(self, requests: Sequence[SummaryRequest]) -> list[list[str]]:
        """Candidates that came up most often first. Raises ItemError if any unit has no readable answer."""
        if self.config.simplify:
            self._simplify({caption for request in requests for caption in request.captions})
        units = []
        for request in requests:
            if not request.captions:
                raise ItemError("a unit without captions cannot be summarized")
            units.append(_Unit(request, [self._simplified.get(caption, caption) for caption in request.captions]))
        while waiting := [unit for unit in units if self._missing(unit)]:
            self._ask(waiting)
        for unit in units:
            if not unit.found:
                raise ItemError(
                    f"no concept in {unit.asked} answers of the language model; the last was {unit.last[:80]!r}",
                    hint="raise the summarizer's asks or temperature, or use a larger language model",
                )
        return [[concept for concept, _ in unit.found.most_common(unit.request.n_concepts)] for unit in units]

    def _missing(self, unit: _Unit) -> int:
        asks: int = self.config.asks
        return max(0, min(unit.request.n_concepts - len(unit.found), asks - unit.asked))

    def _ask(self, units: Sequence[_Unit]) -> None:
        """One wave: every unit asks as often as it misses candidates, so that a wave is one large batch."""
        asks: list[tuple[_Unit, Ask]] = []
        for unit in units:
            for _ in range(self._missing(unit)):
                seed = _derive(unit.request.seed, "concept", unit.asked)
                captions = list(unit.captions)
                random.Random(seed).shuffle(captions)
                asks.append((unit, Ask(concept_messages(captions), seed, self.config.temperature)))
                unit.asked += 1
        lists: list[tuple[_Unit, Ask]] = []
        for (unit, ask), text in zip(asks, self.answer([ask for _, ask in asks]), strict=True):
            if self._read(unit, text):
                again = choose_messages(ask.messages, text)
                lists.append((unit, Ask(again, _derive(ask.seed, "choose"), ask.temperature)))
        if lists:
            for (unit, _), text in zip(lists, self.answer([ask for _, ask in lists]), strict=True):
                self._read(unit, text)

    def _read(self, unit: _Unit, text: str) -> bool:
        """Keep the concept in an answer. True where it is a list, to be fed back."""
        unit.last = text
        try:
            unit.found[parse_concept(text)] += 1
        except ListAnswer:
            return True
        except BadAnswer:
            pass
        return False

    def _simplify(self, captions: set[str]) -> None:
        """Every new caption once. One that the model cannot rewrite stays as the captioner gave it."""
        new = sorted(captions - self._simplified.keys())
        for caption in captions & self._simplified.keys():
            self._simplified.move_to_end(caption)
        asks = [Ask(simplify_messages(caption), _derive(0, "simplify", caption), 0.0) for caption in new]
        for caption, text in zip(new, self.answer(asks) if asks else [], strict=True):
            try:
                self._simplified[caption] = parse_simplified(text, caption)
            except BadAnswer:
                self._simplified[caption] = caption
        while len(self._simplified) > max(_REMEMBERED, len(captions)):
            self._simplified.popitem(last=False)


def _derive(seed: int, *parts: object) -> int:
    """A seed for a part of the work, 63 bits."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:8]) >> 1
