"""Scorers of the activations on synthetic images alone, without a model: "topk-squared" and "mean"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api

Floats = npt.NDArray[np.float64]


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
                sample = one.sample_activations.astype(np.float64)  # in float32 the squares of large ones overflow
                centre, spread = float(sample.mean()), float(sample.std())
            means = one.activations.astype(np.float64).mean(axis=1)
            answers.append([float((m - centre) / (spread or 1.0)) for m in means])
        return answers
