"""Scorers that look at images through CLIP: "image-product" and "clip-rank"."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd_hf.clip import ClipBackend, ClipConfig, ClipMemory, Floats
from dnd_scorers.ranks import topk_squared


class ClipScorerConfig(ClipConfig):
    """Settings of every scorer that looks at images through CLIP."""

    top: int = pydantic.Field(5, ge=1)
    """How many of a candidate's strongest images count."""
    cache: int = pydantic.Field(20_000, ge=1)
    """How many images' embeddings are kept, the least recently used go first."""


class ClipScorer(ClipBackend, api.Scorer):
    """Keeps the embeddings of what it has seen."""

    Config = ClipScorerConfig
    batch_size = 16

    def __init__(self, config: ClipScorerConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self._seen, self._read = ClipMemory(config.cache), ClipMemory(config.cache)

    def close(self) -> None:
        super().close()
        self._seen, self._read = ClipMemory(self.config.cache), ClipMemory(self.config.cache)

    def images(self, pictures: Sequence[api.Picture]) -> Floats:
        """(n, d): embeddings of length 1, in the order of `pictures`."""
        by_digest = {p.digest: p for p in pictures}
        return self._seen.get(
            [p.digest for p in pictures], lambda new: self.clip.images([by_digest[digest].open for digest in new])
        )

    def texts(self, texts: Iterable[str]) -> Floats:
        """(n, d): embeddings of length 1."""
        return self._read.get(list(texts), self.clip.texts)

    def wording(self, concept: str) -> str:
        """What CLIP reads of a concept."""
        return concept

    def look(self, evidence: Sequence[api.Evidence], *, at_candidates: bool = False) -> None:
        """Embed the samples, the exemplars and the names, in full batches; with `at_candidates` their images too."""
        shown = [one.sample for one in evidence] + [one.exemplars for one in evidence]
        if at_candidates:
            shown += [images for one in evidence for images in one.images]
        self.images(list({picture.digest: picture for some in shown for picture in some}.values()))
        self.texts({self.wording(concept): None for one in evidence for concept in one.concepts})

    def seen(self, evidence: Sequence[api.Evidence]) -> list[npt.NDArray[np.bool_]]:
        """A candidate is seen on exemplars that are nearer to its own images than to the random sample."""
        self.look(evidence, at_candidates=True)
        return [self._seen_of(one) for one in evidence]

    def _seen_of(self, one: api.Evidence) -> npt.NDArray[np.bool_]:
        exemplars, sample = self.images(one.exemplars), self.images(one.sample)
        rows = []
        for text, own in zip(self.texts(map(self.wording, one.concepts)), one.images, strict=True):
            middle = (np.median(self.images(own) @ text) + np.median(sample @ text)) / 2
            rows.append(exemplars @ text >= middle)
        return np.stack(rows)

    def product(self, one: api.Evidence) -> Floats:
        """(n_concepts,), -1..1: mean cosine between the unit's exemplars and a candidate's strongest images."""
        strongest = [
            [row[i] for i in np.argsort(-acts, kind="stable")[: self.config.top]]
            for row, acts in zip(one.images, one.activations, strict=True)
        ]
        ends = np.cumsum([len(one.exemplars), *map(len, strongest)])[:-1]
        exemplars, *rows = np.split(self.images([*one.exemplars, *chain.from_iterable(strongest)]), ends)
        return np.array([float(row.mean(axis=0) @ exemplars.mean(axis=0)) for row in rows])


class ImageProduct(ClipScorer):
    """CLIP's mean cosine between a unit's exemplars and each candidate's strongest synthetic images.

    A lone candidate scores 1: there is nothing to compare it with, and no image is looked at.
    """

    name = "image-product"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [self.product(one).tolist() if len(one.concepts) > 1 else [1.0] * len(one.concepts) for one in evidence]


class ClipRank(ClipScorer):
    """Describe-and-Dissect's combination: TopK-squared times image product, both in 0..1 and both counting upwards.

    A lone candidate scores 1: there is nothing to compare it with, and no image is looked at.
    """

    name = "clip-rank"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        answers = []
        for one in evidence:
            if len(one.concepts) < 2:
                answers.append([1.0] * len(one.concepts))
                continue
            answers.append(combine(topk_squared(one.activations, self.config.top), self.product(one)).tolist())
        return answers


def combine(topk: Floats, product: Floats) -> Floats:
    """Of scores in 0..1 and cosines in -1..1: 0..1, never falling when either part rises."""
    return topk * (1 + product) / 2
