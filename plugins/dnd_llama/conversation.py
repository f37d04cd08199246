"""The conversation of a summarizer, whatever runs the model: simplify, ask, read, ask again."""

from __future__ import annotations

import hashlib
import json
import math
import random
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from dnd.api import Config, ItemError, JudgedConcept, ModelError, Runtime, Summarizer, SummaryRequest
from dnd_llama.answers import (
    CONCEPT_PATTERN,
    MAX_NAMES,
    NAMES_PATTERN,
    BadAnswer,
    ListAnswer,
    parse_concept,
    parse_names,
    parse_simplified,
)
from dnd_llama.domains import Name
from dnd_llama.names import Names, accounts_for
from dnd_llama.prompts import (
    Message,
    again_messages,
    breadth_messages,
    choose_messages,
    concept_messages,
    simplify_messages,
)

TRAINED = "summarizer.json"
"""In the folder of a checkpoint that was trained on these prompts: what it answers with."""
_REMEMBERED = 65_536


@dataclass(frozen=True)
class Ask:
    """One chat to be answered."""

    messages: Sequence[Message]
    seed: int
    temperature: float
    """0 takes the likeliest token each time."""
    pattern: str | None = None
    """Regular expression of a good answer; a summarizer may hold the model to it."""


@dataclass
class _Unit:
    """What has been asked and answered for one request."""

    request: SummaryRequest
    captions: list[str]
    found: Names = field(default_factory=Names)
    second: Names = field(default_factory=Names)
    """Concepts of the captions that the commonest of `found` does not account for."""
    asked: int = 0
    last: str = ""
    wrong: str = ""
    """With the last answer."""
    last_ask: Ask | None = None

    def rest(self) -> list[str]:
        """Those captions, repeated to the usual number; none where one concept accounts for all or for nothing."""
        first = self.found.most_common()[0]
        rest = [caption for caption in self.captions if not accounts_for(first, caption)]
        if len(rest) == len(self.captions):
            return []
        return (rest * len(self.captions))[: len(self.captions)]

    def candidates(self) -> list[str]:
        """At most as many as asked for, commonest first; up to a quarter of them from `second`."""
        n = self.request.n_concepts
        more = [concept for concept in self.second.most_common() if concept not in self.found][: max(1, n // 4)]
        return [*self.found.most_common()[: n - len(more) or 1], *more][:n]


class AskingConfig(Config):
    """Settings of every summarizer that asks a chat model."""

    temperature: float = pydantic.Field(0.3, ge=0, le=2)
    """Higher ones give more distinct candidates, and fewer that are right (benchmarks/RESULTS.md)."""
    simplify: bool | Literal["auto"] = "auto"
    """Have the model rewrite every caption first, without unnecessary detail, as Describe-and-Dissect does. What unlike
    things share, a texture, a colour or an action, is often among what it leaves out (benchmarks/RESULTS.md): "auto" is
    false, unless the checkpoint was trained for this plugin and has a file summarizer.json."""
    renamed: ClassVar[Mapping[str, str]] = {"asks": "n_samples", "second_asks": "n_extra_samples"}
    n_samples: int = pydantic.Field(10, ge=1, le=100)
    """Names sampled per unit at most, until it has enough distinct candidates; those that cannot be read count."""
    n_extra_samples: int = pydantic.Field(8, ge=0, le=100)
    """Further names sampled for just the captions that the commonest one does not account for, word by word: a unit
    may respond to two unrelated things."""
    names: Literal["auto", "one", "three"] = "auto"
    """Names in an answer: "three" are the plain, a narrow and a broad one, for the scorer to choose from. "auto" is
    three, unless the checkpoint was trained to give one and says so in its file summarizer.json."""
    domain: Name = "general"
    """What the images are of: "land cover" asks for a land-cover class beside the concept."""
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
        """Candidates that came up most often first, then those of a second meaning.

        Raises ItemError if any unit has no readable answer.
        """
        if self._simplifies:
            self._simplify({caption for request in requests for caption in request.captions})
        units = []
        for request in requests:
            if not request.captions:
                raise ItemError("a unit without captions cannot be summarized")
            units.append(_Unit(request, [self._simplified.get(caption, caption) for caption in request.captions]))
        while waiting := [unit for unit in units if self._missing(unit)]:
            self._ask(waiting, [self._missing(unit) for unit in waiting])
        self._correct([unit for unit in units if not unit.found])
        for unit in units:
            if not unit.found:
                raise ItemError(
                    f"no concept in {unit.asked} answers of the language model; the last was {unit.last[:80]!r}"
                    f" ({unit.wrong})",
                    hint="raise the summarizer's n_samples or temperature, or use a larger language model",
                )
        self._ask_again(units)
        return [unit.candidates() for unit in units]

    def checkpoint(self) -> Path | None:
        """The folder of its model, where there is one. Raises ModelError where it is missing."""
        return None

    @cached_property
    def _three(self) -> bool:
        """Whether an answer is three names. Raises ModelError where the checkpoint does not say it in a known way."""
        names = self.config.names
        if names == "auto":
            folder = self.checkpoint()
            names = trained_names(folder) if folder else "three"
        return bool(names == "three" and self.config.domain == "general")

    @cached_property
    def _simplifies(self) -> bool:
        simplify = self.config.simplify
        if simplify == "auto":
            folder = self.checkpoint()
            return folder is not None and (folder / TRAINED).exists()
        return bool(simplify)

    def _answers(self, n_names: int) -> int:
        """How many answers it takes for so many names."""
        return math.ceil(n_names / (MAX_NAMES if self._three else 1))

    def _missing(self, unit: _Unit) -> int:
        n_samples: int = self.config.n_samples
        names = unit.request.n_concepts - len(unit.found)
        return max(0, min(self._answers(names), self._answers(n_samples) - unit.asked))

    def _ask_again(self, units: Sequence[_Unit]) -> None:
        """A last wave for units with captions that their commonest concept does not account for."""
        rests = [_Unit(unit.request, unit.rest(), asked=unit.asked) for unit in units]
        some = [rest for rest in rests if rest.captions]
        self._ask(some, [self._answers(self.config.n_extra_samples)] * len(some))
        for unit, rest in zip(units, rests, strict=True):
            unit.second = rest.found

    def _ask(self, units: Sequence[_Unit], times: Sequence[int]) -> None:
        """One wave: every unit asks so many times, all in one large batch."""
        asks: list[tuple[_Unit, Ask]] = []
        for unit, count in zip(units, times, strict=True):
            for _ in range(count):
                seed = _derive(unit.request.seed, "concept", unit.asked)
                captions = list(unit.captions)
                random.Random(seed).shuffle(captions)
                asks.append((unit, self._question(captions, seed, unit.request.tested)))
                unit.asked += 1
        lists: list[tuple[_Unit, Ask]] = []
        answers = self.answer([ask for _, ask in asks]) if asks else []
        for (unit, ask), text in zip(asks, answers, strict=True):
            if self._read(unit, ask, text):
                again = choose_messages(ask.messages, text)
                lists.append((unit, Ask(again, _derive(ask.seed, "choose"), ask.temperature, CONCEPT_PATTERN)))
        if lists:
            for (unit, ask), text in zip(lists, self.answer([ask for _, ask in lists]), strict=True):
                self._read(unit, ask, text)

    def _question(self, captions: Sequence[str], seed: int, tested: Sequence[JudgedConcept]) -> Ask:
        """A checkpoint that was trained on one form of question gets the captions alone."""
        if self._three:
            return Ask(breadth_messages(captions, tested), seed, self.config.temperature, NAMES_PATTERN)
        return Ask(concept_messages(captions, self.config.domain), seed, self.config.temperature, CONCEPT_PATTERN)

    def _correct(self, units: Sequence[_Unit]) -> None:
        """Units none of whose answers could be read: the last one is fed back once, with what was wrong with it."""
        asks = [(unit, unit.last_ask) for unit in units if unit.last_ask is not None]
        again = [
            Ask(
                again_messages(ask.messages, unit.last, unit.wrong),
                _derive(ask.seed, "again"),
                ask.temperature,
                CONCEPT_PATTERN,
            )
            for unit, ask in asks
        ]
        for (unit, _), ask, text in zip(asks, again, self.answer(again) if again else [], strict=True):
            self._read(unit, ask, text)
            unit.asked += 1

    def _read(self, unit: _Unit, ask: Ask, text: str) -> bool:
        """Keep the names in an answer. True where it is a list and should not be: to be fed back."""
        unit.last, unit.last_ask = text, ask
        try:
            for name in parse_names(text) if self._three else [parse_concept(text)]:
                unit.found.add(name)
        except BadAnswer as error:
            unit.wrong = str(error)
            return isinstance(error, ListAnswer)
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


def trained_names(folder: Path) -> str:
    """What a checkpoint was trained to answer with, "one" name or "three": what its summarizer.json says, if it has
    one. Raises ModelError where that cannot be read."""
    file = folder / TRAINED
    if not file.exists():
        return "three"
    try:
        names = json.loads(file.read_text("utf-8"))["names"]
    except (OSError, ValueError, TypeError, KeyError):
        names = None
    if names not in ("one", "three"):
        raise ModelError(
            f"{file} does not say how many names an answer has",
            'write {"names": "one"} or {"names": "three"}, or set the summarizer\'s names',
        )
    return str(names)


def _derive(seed: int, *parts: object) -> int:
    """A seed for a part of the work, 63 bits."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:8]) >> 1
