"""Would a figure notice a wrong label? The missing-labels and extra-labels tests of Oikarinen, Yan and Weng (2025).

A unit is on exactly where its concept is, on a share p of the images. Missing labels: half of the concept's images
are said not to show it, as with a label that is too narrow. Extra labels: as many other images are said to show it,
as with a label that is too broad. A metric passes if both cost it something even for a rare concept. All metrics are
measured by the code that `dnd eval` uses and stand beside what pen and paper say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dnd.evaluation.metrics import METRICS

SHARE = 0.01
IMAGES = 10_000
NOTICED = 0.05
"""A metric must fall by this, of the range from chance-free 0 to 1, to pass."""

Closed = Callable[[float], float]


def _active(p: float) -> float:
    """The weight of a unit's active images among top and random ones."""
    return (1 + p) / 2


CLOSED: dict[str, tuple[Closed, Closed]] = {
    "recall": (lambda p: -1 / 2, lambda p: 0.0),
    "precision": (lambda p: 0.0, lambda p: -1 / 2),
    "f1": (lambda p: -1 / 3, lambda p: -1 / 3),
    "iou": (lambda p: -1 / 2, lambda p: -1 / 2),
    "accuracy": (lambda p: -p / 2, lambda p: -p),
    "balanced_accuracy": (lambda p: -1 / 4, lambda p: -p / (2 - 2 * p)),
    "inverse_balanced_accuracy": (lambda p: -p / (4 - 2 * p), lambda p: -1 / 4),
    "auc": (lambda p: -1 / 4, lambda p: -p / (2 - 2 * p)),
    "inverse_auc": (lambda p: -p / (4 - 2 * p), lambda p: -1 / 4),
    "correlation": (
        lambda p: (math.sqrt((1 - p) / (2 - p)) - 1) / 2,
        lambda p: (math.sqrt((1 - 2 * p) / (2 - 2 * p)) - 1) / 2,
    ),
    "correlation_top_and_random": (
        lambda p: (math.sqrt((1 - _active(p)) / (2 - _active(p))) - 1) / 2,
        lambda p: (
            (math.sqrt(_active(p) * (1 - _active(p) - p / 2) / ((1 - _active(p)) * (_active(p) + p / 2))) - 1) / 2
        ),
    ),
    "spearman": (lambda p: -3 / 4 * p * (1 - p), lambda p: -3 / 2 * p * p),
    "spearman_top_and_random": (
        lambda p: -3 / 4 * _active(p) * (1 - _active(p)),
        lambda p: -3 / 4 * _active(p) * p,
    ),
    "cosine": (lambda p: (math.sqrt(1 / 2) - 1) / 2, lambda p: (math.sqrt(1 / 2) - 1) / 2),
    "wpmi": (
        lambda p: (math.log(2) + math.log(1e-8) / 2) / -math.log(p),
        lambda p: math.log(2) / math.log(p),
    ),
    "mad": (lambda p: 0.0, lambda p: -1 / (2 - 2 * p)),
    "auprc": (lambda p: -(1 - p) / 2, lambda p: -1 / 2),
    "inverse_auprc": (lambda p: -1 / 2, lambda p: -(1 / 2 - p)),
}
"""What missing and extra labels change each metric by, for a concept on a share p of the images."""


@dataclass(frozen=True)
class Check:
    """One metric under both tests; changes are of the metric brought to 0..1."""

    metric: str
    missing: float
    missing_expected: float
    extra: float
    extra_expected: float

    @property
    def passes(self) -> bool:
        return max(self.missing, self.extra) <= -NOTICED


def normalised(metric: str, value: float, perfect: float) -> float:
    """-1..1 brought to 0..1; `mad` and `wpmi`, which have no bound, as a share of what the perfect label gets."""
    if metric == "cosine" or metric.startswith(("correlation", "spearman")):
        return (value + 1) / 2
    return value / perfect if metric in ("mad", "wpmi") else value


def run_checks(share: float = SHARE, images: int = IMAGES) -> list[Check]:
    """Every metric on a unit that is on for a share of the images, at most half; share * images is an even number."""
    shown = round(share * images)
    neuron, missing, extra = np.zeros((3, images))
    neuron[:shown] = missing[: shown // 2] = extra[: 2 * shown] = 1
    weights = np.ones(images)
    found = []
    for name, metric in METRICS.items():
        perfect = float(metric(neuron, neuron, weights))
        changes = [
            normalised(name, float(metric(presence, neuron, weights)), perfect) - normalised(name, perfect, perfect)
            for presence in (missing, extra)
        ]
        expected = [closed(shown / images) for closed in CLOSED[name]]
        found.append(Check(name, changes[0], expected[0], changes[1], expected[1]))
    return found


def run_image_checks(share: float = SHARE, n_images: int = 20, n_random: int = 500) -> dict[str, tuple[float, float]]:
    """The figures on images as `dnd eval` weighs them: what a too narrow and a too broad label changes each by.

    The unit is on for its concept, which a share of the random images shows. All images of the right label show it,
    and all of a too narrow one too: of what else the unit responds to there is no image that the label is blamed for.
    Of a too broad label half of the images do.
    """
    from dnd.evaluation.images import auc_tables

    random = np.zeros((n_random, 1))
    random[: round(share * n_random)] = 1
    right = np.ones((n_images, 1))
    narrow, broad = right.copy(), right.copy()
    broad[n_images // 2 :] = 0
    tables = auc_tables(np.stack([right, narrow, broad]), random)
    changes = {}
    for name, table in tables.items():
        best, *others = (normalised(name, float(value), float(table[0, 0])) for value in table[0])
        changes[name] = (others[0] - best, others[1] - best)
    return changes
