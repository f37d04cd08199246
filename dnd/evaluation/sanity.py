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

CLOSED: dict[str, tuple[Closed, Closed]] = {
    "recall": (lambda p: -1 / 2, lambda p: 0.0),
    "precision": (lambda p: 0.0, lambda p: -1 / 2),
    "accuracy": (lambda p: -p / 2, lambda p: -p),
    "f1": (lambda p: -1 / 3, lambda p: -1 / 3),
    "iou": (lambda p: -1 / 2, lambda p: -1 / 2),
    "correlation": (
        lambda p: (math.sqrt((1 - p) / (2 - p)) - 1) / 2,
        lambda p: (math.sqrt((1 - 2 * p) / (2 - 2 * p)) - 1) / 2,
    ),
    "cosine": (lambda p: (math.sqrt(1 / 2) - 1) / 2, lambda p: (math.sqrt(1 / 2) - 1) / 2),
    "auprc": (lambda p: -1 / 2, lambda p: -(1 / 2 - p)),
    "auc": (lambda p: -p / (4 - 2 * p), lambda p: -1 / 4),
    "auc_of_presence": (lambda p: -1 / 4, lambda p: -p / (2 - 2 * p)),
    "mad": (lambda p: 0.0, lambda p: -1 / (2 - 2 * p)),
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
    """-1..1 brought to 0..1; `mad`, which has no bound, as a share of what the perfect label gets."""
    if metric in ("correlation", "cosine"):
        return (value + 1) / 2
    return value / perfect if metric == "mad" else value


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
