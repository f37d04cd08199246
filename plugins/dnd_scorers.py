"""The bundled scorers: how well each candidate concept explains a unit.

All scores are higher-is-better, and those that compare activations use ranks or the unit's own spread, so
that scores of units of different scale can be put side by side. CLIP looks at each distinct image once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd.labels import drive
from dnd_clip import Clip, ClipConfig, ClipMemory, Floats

# --- activations alone -------------------------------------------------------------------------------


def ranks(activations: npt.NDArray[np.float32]) -> Floats:
    """(n_concepts, n_images) -> each candidate's ranks among all synthetic images, its strongest first.

    0 is the strongest of all. A tie with another candidate's image counts half; a candidate's own equal images
    take successive ranks, so that raising one of its values never costs it.
    """
    found = np.empty(activations.shape, np.float64)
    for row, own in enumerate(activations):
        others = np.sort(np.delete(activations, row, axis=0), axis=None)
        strongest_first = np.sort(own)[::-1]
        weaker = np.searchsorted(others, strongest_first, "left") + np.searchsorted(others, strongest_first, "right")
        found[row] = others.size - weaker / 2 + np.arange(own.size)
    return found


def topk_squared(activations: npt.NDArray[np.float32], top: int) -> Floats:
    """(n_concepts, n_images) -> (n_concepts,) in 0..1: 1 minus the mean square of a candidate's best `top` ranks
    among all synthetic images, as a share of the worst rank's square. (Describe-and-Dissect's TopK-squared.)"""
    if activations.size < 2:
        return np.ones(len(activations))
    best = ranks(activations)[:, :top] / (activations.size - 1)
    found: Floats = 1 - (best**2).mean(axis=1)
    return found


class TopKConfig(api.Config):
    top: int = pydantic.Field(5, ge=1)
    """How many of a candidate's strongest images count."""


class TopKSquared(api.Scorer):
    """Mean square of each candidate's best ranks among all synthetic images of the unit; no model."""

    name = "topk-squared"
    Config = TopKConfig

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [topk_squared(one.activations, self.config.top).tolist() for one in evidence]


class MeanActivation(api.Scorer):
    """Mean activation on a candidate's images, in standard deviations above the random sample's mean."""

    name = "mean"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        answers = []
        for one in evidence:
            centre, spread = (0.0, 0.0)
            if one.sample_activations.size:
                centre, spread = float(one.sample_activations.mean()), float(one.sample_activations.std())
            means = one.activations.astype(np.float64).mean(axis=1)
            answers.append([float((m - centre) / (spread or 1.0)) for m in means])
        return answers


# --- CLIP --------------------------------------------------------------------------------------------


class ClipScorerConfig(ClipConfig):
    """Settings of every scorer that looks at images through CLIP."""

    top: int = pydantic.Field(5, ge=1)
    """How many of a candidate's strongest images count."""
    cache: int = pydantic.Field(20_000, ge=1)
    """How many images' embeddings are kept, the least recently used go first."""


class _ClipScorer(api.Scorer):
    """Loads CLIP and keeps the embeddings of what it has seen."""

    requires = ("transformers", "accelerate")
    Config = ClipScorerConfig
    batch_size = 16

    def __init__(self, config: ClipScorerConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self._clip: Clip | None = None
        self._seen, self._read = ClipMemory(config.cache), ClipMemory(config.cache)

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable CLIP."""
        if self._clip is None:
            folder = self.runtime.weights(self.config.model)
            self._clip = Clip(folder, self.runtime.device, self.config.batch_size, self.config.model)

    def close(self) -> None:
        if self._clip is not None:
            self._clip.close()
            self._clip = None
        self._seen, self._read = ClipMemory(self.config.cache), ClipMemory(self.config.cache)

    def images(self, pictures: Sequence[api.Picture]) -> Floats:
        """(n, d): embeddings of length 1, in the order of `pictures`."""
        if self._clip is None:
            raise RuntimeError("images() before load()")
        clip, by_digest = self._clip, {p.digest: p for p in pictures}
        return self._seen.get(
            [p.digest for p in pictures], lambda new: clip.images([by_digest[digest].open for digest in new])
        )

    def texts(self, texts: Iterable[str]) -> Floats:
        """(n, d): embeddings of length 1."""
        if self._clip is None:
            raise RuntimeError("texts() before load()")
        return self._read.get(list(texts), self._clip.texts)

    def product(self, one: api.Evidence) -> Floats:
        """(n_concepts,), -1..1: mean cosine between the unit's exemplars and a candidate's strongest images."""
        exemplars = self.images(one.exemplars).mean(axis=0)
        strongest = [
            [row[i] for i in np.argsort(-acts, kind="stable")[: self.config.top]]
            for row, acts in zip(one.images, one.activations, strict=True)
        ]
        return np.array([float(self.images(row).mean(axis=0) @ exemplars) for row in strongest])


class ImageProduct(_ClipScorer):
    """CLIP's mean cosine between a unit's exemplars and each candidate's strongest synthetic images.

    A lone candidate scores 1: there is nothing to compare it with, and no image is looked at.
    """

    name = "image-product"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [self.product(one).tolist() if len(one.concepts) > 1 else [1.0] * len(one.concepts) for one in evidence]


class ClipRank(_ClipScorer):
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


# --- coverage ----------------------------------------------------------------------------------------


class CoverageConfig(ClipScorerConfig):
    prompt: str = "{concept}"
    """What CLIP's text tower reads."""
    enough_drive: float = pydantic.Field(0.85, gt=0.5, le=1)
    """A candidate is docked only where its images drive the unit less than this (AUC against random images)."""

    @pydantic.field_validator("prompt")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{concept}" not in value:
            raise ValueError("must contain {concept}")
        return value


class Coverage(_ClipScorer):
    """How much of what the unit does each candidate accounts for, beyond the candidates before it.

    Over the exemplars and the random sample, CLIP's likeness of image and candidate predicts the unit's
    activation; see `coverage`. A name that is too narrow misses images that drive the unit, a name that is too
    broad promises images that do not: both predict worse than the right one. Scores are shares of a multiple
    correlation, 0..1, and so compare between units; a lone candidate's too.
    """

    name = "coverage"
    Config = CoverageConfig

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [self._score(one) if one.concepts else [] for one in evidence]

    def _score(self, one: api.Evidence) -> list[float]:
        order = sorted(range(len(one.concepts)), key=lambda i: one.concepts[i])  # so that no tie hangs on the order
        points = self.images([*one.sample, *one.exemplars])
        texts = self.texts(self.config.prompt.replace("{concept}", one.concepts[i]) for i in order)
        activations = np.concatenate([one.sample_activations, one.exemplar_activations]).astype(np.float64)
        drives = np.array([drive(one.activations[i], one.sample_activations) for i in order])
        found = coverage(
            likeness(texts @ points.T, len(one.sample)), activations, np.minimum(drives / self.config.enough_drive, 1)
        )
        scores = np.empty(len(order))
        scores[order] = found
        return [float(score) for score in scores]


def likeness(cosines: Floats, n_sample: int) -> Floats:
    """(n_concepts, n_points) cosines, the random sample's `n_sample` first -> the exponential of how many of the
    sample's standard deviations each is above the sample's mean, at most 4: what stands out counts most."""
    ordinary = cosines[:, :n_sample] if n_sample else cosines
    spread = ordinary.std(axis=1, keepdims=True)
    scaled = (cosines - ordinary.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    found: Floats = np.exp(np.minimum(scaled, 4.0))
    return found


def coverage(likenesses: Floats, activations: Floats, weights: Floats) -> Floats:
    """Greedy forward selection of non-negative regression: which candidate adds most to the correlation.

    likenesses (n_concepts, n_points), activations (n_points,), weights (n_concepts,) in 0..1 by which a
    candidate's gain is multiplied. Returns (n_concepts,) in 0..1: the first candidate's weighted correlation with
    the activations, then what each adds to the multiple correlation of those chosen before it, never rising.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    features = likenesses - likenesses.mean(axis=1, keepdims=True)
    goal = activations - activations.mean()
    size = float(np.linalg.norm(goal))
    scores = np.zeros(len(features))
    if size == 0:
        return scores
    chosen: list[int] = []
    reached, limit = 0.0, 1.0
    while len(chosen) < len(features):
        gains: dict[int, tuple[float, float]] = {}
        for i in set(range(len(features))) - set(chosen):
            _, miss = nnls(features[[*chosen, i]].T, goal)
            correlation = float(np.sqrt(max(0.0, 1 - (miss / size) ** 2)))
            gains[i] = (max(0.0, correlation - reached) * float(weights[i]), correlation)
        best = max(sorted(gains), key=lambda i: gains[i][0])
        limit = scores[best] = min(limit, gains[best][0])
        reached = max(reached, gains[best][1])
        chosen.append(best)
    return scores


@api.hookimpl
def register_scorers() -> Iterable[type[api.Scorer]]:
    return [Coverage, ClipRank, ImageProduct, TopKSquared, MeanActivation]
