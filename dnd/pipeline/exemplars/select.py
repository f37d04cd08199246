"""Which images and crops become a unit's exemplars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dnd.pipeline.exemplars.crop import Region


def choose(regions: Sequence[Region], k: int, pool: int = 0, baseline: float = -np.inf) -> list[Region]:
    """The k strongest regions, strongest first.

    With `pool` > k, k of the strongest `pool`: the strongest, then each time the one farthest (by Euclid, in the
    layer's standardised activation space) from those already taken: farthest-point sampling, Gonzalez 1985. What is
    weaker than halfway from `baseline`, the median of the unit's activations on the random sample, to the k-th
    strongest is left out.
    """
    ranked = sorted(regions, key=lambda c: (-c.activation, c.box is not None, c.image, c.box or ()))
    if pool <= k or len(ranked) <= k:
        return ranked[:k]
    least = (baseline + ranked[k - 1].activation) / 2
    ranked = [region for region in ranked[:pool] if region.activation >= least]
    places = np.array([region.features for region in ranked])  # (at most pool, d)
    taken = [0]
    distance = np.full(len(places), np.inf)
    while len(taken) < min(k, len(places)):
        distance = np.minimum(distance, ((places - places[taken[-1]]) ** 2).sum(1))
        distance[taken] = -1
        taken.append(int(distance.argmax()))
    return [ranked[place] for place in sorted(taken)]
