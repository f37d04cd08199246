"""The scorer "coverage": how much of a unit's activations a candidate accounts for, beyond those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd.api import auc
from dnd_hf.clip import Floats
from dnd_scorers.clip import ClipScorer, ClipScorerConfig

Flags = npt.NDArray[np.bool_]


class CoverageConfig(ClipScorerConfig):
    prompt: str = "{concept}"
    """What CLIP's text tower reads."""
    enough_auc: float = pydantic.Field(0.85, gt=0.5, le=1)
    """A candidate is docked only where its AUC against random probing images is below this."""
    chance_gain: float = pydantic.Field(0.02, ge=0, lt=1)
    """What candidates after the first add to the correlation is docked above this only: it is no more than chance gives
    (the best of a unit's names, their likenesses dealt at random, adds as much in one unit of twelve), so no images are
    made for it."""
    renamed: ClassVar[Mapping[str, str]] = {"enough_drive": "enough_auc"}

    @pydantic.field_validator("prompt")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if "{concept}" not in value:
            raise ValueError("must contain {concept}")
        return value


class Coverage(ClipScorer):
    """How much of what the unit does each candidate accounts for, beyond the candidates before it.

    Over the exemplars and the random sample, CLIP's likeness of image and candidate predicts the unit's
    activation; see `coverage`. A name that is too narrow misses images that activate the unit, a name that is too
    broad promises images that do not: both predict worse than the right one. Scores are shares of a multiple
    correlation, 0..1, and so compare between units; a lone candidate's too.
    """

    name = "coverage"
    Config = CoverageConfig

    @property
    def rounds(self) -> Sequence[float]:
        """A candidate is not docked once this share of its images activate the unit, whatever the others do."""
        return (self.config.enough_auc,)

    def wording(self, concept: str) -> str:
        return str(self.config.prompt.replace("{concept}", concept))

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        self.look(evidence)
        return [self._score(one, self._weights(one))[0].tolist() for one in evidence]

    def bound(self, evidence: Sequence[api.Evidence]) -> list[list[api.Bound]]:
        """The scores that candidates have if all their images to come activate the unit. One that comes first then, and
        is docked no more than then, comes first anyway; where nothing adds anything, no image can change it."""
        self.look(evidence)
        answers = []
        for one in evidence:
            most, least = self._weights(one, math.inf), self._weights(one, -math.inf)
            scores, counts = self._score(one, most)
            answers.append(bounds(scores, counts & (least < most)))
        return answers

    def _weights(self, one: api.Evidence, to_come: float = math.nan) -> Floats:
        """By what each candidate's gain is multiplied if the unit's activation is `to_come` on images to come."""
        rows = np.where(np.isnan(one.activations), np.float32(to_come), one.activations)
        aucs = np.array([auc(row, one.sample_activations) for row in rows])
        weights: Floats = np.minimum(aucs / self.config.enough_auc, 1)
        return weights

    def _score(self, one: api.Evidence, weights: Floats) -> tuple[Floats, Flags]:
        order = sorted(range(len(one.concepts)), key=lambda i: one.concepts[i])  # so that no tie hangs on the order
        scores, counts = np.zeros(len(order)), np.zeros(len(order), bool)
        if order:
            points = self.images([*one.sample, *one.exemplars])
            texts = self.texts(self.wording(one.concepts[i]) for i in order)
            activations = np.concatenate([one.sample_activations, one.exemplar_activations]).astype(np.float64)
            likenesses = likeness(texts @ points.T, len(one.sample))
            scores[order], counts[order] = coverage(likenesses, activations, weights[order], self.config.chance_gain)
        return scores, counts


def bounds(scores: Floats, is_open: Flags) -> list[api.Bound]:
    """From the scores (n_concepts,) with the greatest weights, and whose weight counts and may be less."""
    # Of equal ones, cut to the score before them, each may take another's place once its weight is less.
    values, counts = np.unique(scores, return_counts=True)
    tied = np.isin(scores, values[(counts > 1) & (values >= np.sort(scores)[-api.N_LABELS :].min(initial=1))])
    best = np.where(is_open & tied, math.inf, scores)
    return [api.Bound(float(score), bool(some)) for score, some in zip(best, is_open, strict=True)]


def likeness(cosines: Floats, n_sample: int) -> Floats:
    """(n_concepts, n_points) cosines, the random sample's `n_sample` first -> the exponential of how many of the
    sample's standard deviations each is above the sample's mean, at most 4: what stands out counts most."""
    ordinary = cosines[:, :n_sample] if n_sample else cosines
    spread = ordinary.std(axis=1, keepdims=True)
    scaled = (cosines - ordinary.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
    found: Floats = np.exp(np.minimum(scaled, 4.0))
    return found


def coverage(
    likenesses: Floats, activations: Floats, weights: Floats, chance_gain: float = 0.0
) -> tuple[Floats, Flags]:
    """Greedy forward selection of non-negative regression: which candidate adds most to the correlation.

    likenesses (n_concepts, n_points), activations (n_points,), weights (n_concepts,) in 0..1 by which a
    candidate's gain is multiplied, but for the first `chance_gain` of all after the first's. Returns (n_concepts,) in
    0..1: the first candidate's weighted correlation with the activations, then what each adds to the multiple
    correlation of those chosen before it, never rising; and (n_concepts,) whose weights count.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    features = likenesses - likenesses.mean(axis=1, keepdims=True)
    goal = activations - activations.mean()
    size = float(np.linalg.norm(goal))
    scores, counts = np.zeros(len(features)), np.zeros(len(features), bool)
    if size == 0:
        return scores, counts
    chosen: list[int] = []
    reached, limit = 0.0, 1.0
    while len(chosen) < len(features):
        left = sorted(set(range(len(features))) - set(chosen))
        misses = np.array([nnls(features[[*chosen, i]].T, goal)[1] for i in left])
        correlations = np.sqrt(np.maximum(0.0, 1 - (misses / size) ** 2))
        gains = np.maximum(0.0, correlations - reached)
        free = np.minimum(gains, chance_gain if chosen else 0.0)
        docked = free + (gains - free) * weights[left]
        at = int(np.argmax(docked))
        best = left[at]
        limit = scores[best] = min(limit, float(docked[at]))
        if not limit:
            break
        counts[best] = gains[at] > free[at]
        reached = max(reached, float(correlations[at]))
        chosen.append(best)
    return scores, counts
