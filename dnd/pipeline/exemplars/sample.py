"""Activations on the random sample of the probing set: a unit's baseline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dnd.api import Unit, derive_seed
from dnd.pipeline.exemplars.topk import TopKPass

_UNITS_A_BLOCK = 4096


_FEATURES = 32
"""Dimensions of the random projection in which diversity is measured."""


class SampleActivations:
    """Each unit's pooled activations on the random sample."""

    def __init__(self, passes: Mapping[str, TopKPass]) -> None:
        self._of = {layer: one.sample[layer][one.sample_order()] for layer, one in passes.items()}

    def of(self, unit: Unit) -> npt.NDArray[np.float32]:
        """(n_sample,)."""
        return np.ascontiguousarray(self._of[unit.layer][:, unit.index])

    def moments(self, layer: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and deviation of every unit of a layer, (n_units,) each; infinite for a unit that does not vary."""
        parts, sample = [], self._of[layer]
        for first in range(0, sample.shape[1], _UNITS_A_BLOCK):
            rows = np.ascontiguousarray(sample[:, first : first + _UNITS_A_BLOCK].T).astype(np.float64)
            rows[~np.isfinite(rows)] = 0
            parts.append((rows.mean(1), rows.std(1)))
        mean, deviation = (np.concatenate(part) for part in zip(*parts, strict=True))
        return mean, np.where(deviation > 1e-6 * (np.abs(mean) + 1e-12), deviation, np.inf)


def projection(activations: SampleActivations, layer: str, seed: int) -> npt.NDArray[np.float32]:
    """Activations, each unit scaled by its mean and deviation on the sample, through a random projection: what takes
    (n_units + 1,), a 1 behind the activations, to a place (d,)."""
    mean, deviation = activations.moments(layer)
    project = np.random.default_rng(derive_seed(seed, "diversity", layer)).normal(size=(len(mean), _FEATURES))
    matrix = (1 / deviation)[:, None] * project
    return np.concatenate([matrix, -(mean @ matrix)[None]]).astype(np.float32)
