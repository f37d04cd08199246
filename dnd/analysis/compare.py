"""Accuracy with and without some units, beside losing as many others at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from dnd.analysis.ablate import Units
from dnd.analysis.accuracy import Labelled, answers, by_class, find_active
from dnd.api import derive_seed
from dnd.target.layout import Reading
from dnd.target.preprocess import Preprocess
from dnd.target.replica import evaluating

_DRAWS = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Comparison:
    """Accuracies on a data set, 0..1."""

    images: int
    before: float
    after: float
    change: tuple[float, float]
    """95 % bootstrap interval, over images, of after - before."""
    random: tuple[float, ...]
    """Without as many units chosen at random, one per seed."""
    classes: Mapping[str, tuple[float, float, float]]
    """Class -> before, after, mean of the random ones."""
    active: int
    """Units that the random ones were chosen from: the active ones of the pruned layers without the pruned ones, or
    with them where there are too few others."""


def compare(
    module: torch.nn.Module,
    preprocess: Preprocess,
    units: Units,
    data: Labelled,
    *,
    seeds: int = 20,
    device: str = "cpu",
    among: Units | None = None,
    readings: Mapping[str, Reading] = MappingProxyType({}),
) -> Comparison:
    """Accuracy with all units, without `units`, and `seeds` times without as many others of the same layers, drawn
    from those that are active on the data set (and in `among`, if given). The module is left as it was."""
    units = {layer: list(dict.fromkeys(indices)) for layer, indices in units.items()}
    home = next((p.device for p in module.parameters()), torch.device("cpu"))
    with evaluating(module):
        try:
            module.to(device)
            active = find_active(module, preprocess, data, list(units), device, readings)
            pools = _pools(units, active, among)
            draws = [_draw(units, pools, seed) for seed in range(seeds)]
            right = answers(module, preprocess, data, [{}, units, *draws], device, readings)
        finally:
            module.to(home)
    change = right[1].astype(np.float64) - right[0]
    rng = np.random.default_rng(derive_seed("bootstrap"))
    means = [rng.choice(change, change.size).mean() for _ in range(_DRAWS)]
    low, high = np.quantile(means, (0.025, 0.975))
    before, after = (by_class(row, data) for row in right[:2])
    chance = [by_class(row, data) for row in right[2:]]
    return Comparison(
        len(data.indices),
        float(right[0].mean()),
        float(right[1].mean()),
        (float(low), float(high)),
        tuple(float(row.mean()) for row in right[2:]),
        {name: (before[name], after[name], float(np.mean([one[name] for one in chance]))) for name in before},
        sum(len(pool) for pool in pools.values()),
    )


def _pools(units: Units, active: Units, among: Units | None) -> dict[str, list[int]]:
    """What random units are chosen from: active ones of the layer that are not to go anyway."""
    pools = {}
    for layer, indices in units.items():
        here = set(active.get(layer, ())) & (set(among[layer]) if among else set(active.get(layer, ())))
        pool = sorted(here - set(indices))
        if len(pool) < len(indices):
            pool = sorted(here | set(indices))  # too few others: the same units may be drawn
        pools[layer] = pool
    return pools


def _draw(units: Units, pools: Mapping[str, Sequence[int]], seed: int) -> dict[str, list[int]]:
    return {
        layer: sorted(
            np.random.default_rng(derive_seed("prune", layer, seed))
            .choice(pools[layer], len(indices), replace=False)
            .tolist()
        )
        for layer, indices in units.items()
    }
