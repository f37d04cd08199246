"""Parts of the method taken away, each as a backend in its place: what is lost shows what the part is worth."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pydantic

from dnd import api
from dnd_hf.clip import ClipBackend, ClipConfig, Floats
from dnd_methods.concepts import concept_set

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST = 100
"""Characters of a concept at most, as the core has it."""


class ConceptSetConfig(ClipConfig):
    concepts: str = "common-words"
    """The concept set, as in the method `clip-dissect`: a text file, "package:NAME/FILE", or "common-words"."""
    nearest: int = pydantic.Field(1, ge=1, le=20)
    """Concepts in a caption, the likeliest first."""
    prompt: str = "{concept}"
    """What CLIP's text tower reads."""


class ConceptSet(ClipBackend, api.Captioner):
    """A fixed concept set in place of captions: the concepts that CLIP finds most like the image."""

    name = "concept-set"
    Config = ConceptSetConfig

    def __init__(self, config: Any, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size
        self._concepts: list[str] = []
        self._texts: Floats = np.zeros((0, 0))

    def check(self) -> Iterable[str | api.DndError]:
        try:
            concept_set(self.config.concepts)
        except api.DndError as error:
            return [error]
        return ()

    def chosen(self) -> Mapping[str, Any]:
        """The set's content, so that captions from another one are not taken for these."""
        content = "\n".join(concept_set(self.config.concepts))
        return {"content": hashlib.sha256(content.encode()).hexdigest()}

    def load(self) -> None:
        super().load()
        if not self._concepts:
            concepts = concept_set(self.config.concepts)
            self._texts = self.clip.texts(self.config.prompt.replace("{concept}", concept) for concept in concepts)
            self._concepts = concepts

    def close(self) -> None:
        super().close()
        self._concepts, self._texts = [], np.zeros((0, 0))

    def caption(self, images: Sequence[Image]) -> list[str]:
        likeness = self.clip.images([lambda image=image: image for image in images]) @ self._texts.T
        best = np.argsort(-likeness, axis=1, kind="stable")[:, : self.config.nearest]
        return [", ".join(self._concepts[place] for place in row) for row in best]


class Captions(api.Summarizer):
    """No language model: the distinct captions themselves are the candidates, the commonest first, then those of
    stronger exemplars. What is longer than a concept may be is cut after a word."""

    name = "captions"

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        return [self._candidates(request) for request in requests]

    def _candidates(self, request: api.SummaryRequest) -> list[str]:
        counts = Counter(_cut(" ".join(caption.lower().split())) for caption in request.captions)
        candidates = [caption for caption, _ in counts.most_common() if caption]
        if not candidates:
            raise api.ItemError("none of its exemplars has a caption")
        return candidates[: request.n_concepts]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST + 1].rpartition(" ")[0] or text[:_LONGEST]


class First(api.Scorer):
    """No selection: the candidate that the summarizer gave first is the label. 1 for it, 1/2 for the next, ..."""

    name = "first"
    needs_images = False

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [[1 / (place + 1) for place in range(len(one.concepts))] for one in evidence]


@api.hookimpl
def register_captioners() -> Iterable[type[api.Captioner]]:
    return [ConceptSet]


@api.hookimpl
def register_summarizers() -> Iterable[type[api.Summarizer]]:
    return [Captions]


@api.hookimpl
def register_scorers() -> Iterable[type[api.Scorer]]:
    return [First]
