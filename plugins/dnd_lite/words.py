"""Summarizer `word-statistics`: the phrases that a unit's captions hold more often than captions do."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import pydantic

from dnd.api import Config, ItemError, Summarizer, SummaryRequest

_LONGEST = 5
"""Words in a concept."""

_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to and or with by for from over under near next up is are was it its this that there "
        "some several many other one two three very photo photograph picture image view close background foreground "
        "sitting standing top side front back",
    )
)
"""Words that no concept begins or ends with."""

_COMMON: Mapping[str, float] = {
    **dict.fromkeys(("white", "black", "grey", "gray", "brown"), 0.4),
    **dict.fromkeys(("red", "green", "blue", "yellow", "orange", "pink", "purple"), 0.15),
    **dict.fromkeys(("plain", "striped", "spotted"), 0.3),
}
"""Share of captions, any captions, that hold the word; `prior` stands for every phrase not here."""


def phrases(caption: str) -> Iterator[str]:
    """Every run of 1-5 words within a clause that neither begins nor ends with a stop word."""
    for clause in re.split(r"[^a-z0-9'\- ]+|\band\b", caption.lower()):
        tokens = clause.split()
        for start in range(len(tokens)):
            for end in range(start + 1, min(start + _LONGEST, len(tokens)) + 1):
                run = tokens[start:end]
                if run[0] not in _STOP and run[-1] not in _STOP:
                    yield " ".join(run)


def rank_phrases(captions: Sequence[str], prior: float, decay: float) -> list[str]:
    """Distinct phrases, likeliest first.

    The caption of rank r (0 = strongest) weighs (r + 1) ** -decay. A phrase that is in a share q of the
    captions, by weight, and in a share p of captions in general, has evidence q log(q / p): it must be
    both common here and rare elsewhere. Nothing depends on other units: the general shares are fixed.
    """
    weights = [(rank + 1) ** -decay for rank in range(len(captions))]
    found: defaultdict[str, float] = defaultdict(float)
    for caption, weight in zip(captions, weights, strict=True):
        for phrase in dict.fromkeys(phrases(caption)):
            found[phrase] += weight / sum(weights)
    evidence = {f: q * math.log(q / _COMMON.get(f, prior)) for f, q in found.items()}
    kept = [f for f in evidence if evidence[f] > 0 and not _part_of_another(f, found)]
    return sorted(kept, key=lambda f: (-evidence[f], f))


def _part_of_another(phrase: str, found: Mapping[str, float]) -> bool:
    """Whether a longer phrase stands in the very captions this one does: "retriever", all of them golden."""
    return any(
        len(longer) > len(phrase) and f" {phrase} " in f" {longer} " and found[longer] >= found[phrase] - 1e-9
        for longer in found
    )


class WordStatisticsConfig(Config):
    prior: float = pydantic.Field(0.01, gt=0, lt=1)
    """Share of all captions that a phrase is taken to stand in, colour and texture words aside."""
    decay: float = pydantic.Field(1.0, ge=0)
    """How much more the stronger exemplars weigh: 0 for all alike."""


class WordStatistics(Summarizer):
    """Word counts in place of a language model: phrases that a unit's captions hold more often than others do.

    Counts words; knows no meanings, so that "sofa" and "couch" stay two. The seed changes nothing."""

    name = "word-statistics"
    Config = WordStatisticsConfig

    def summarize(self, requests: Sequence[SummaryRequest]) -> list[list[str]]:
        found = []
        for request in requests:
            ranked = rank_phrases(request.captions, self.config.prior, self.config.decay)
            if not ranked:
                raise ItemError("the captions have no word that says anything")
            found.append(ranked[: request.n_concepts])
        return found
