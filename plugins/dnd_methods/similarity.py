"""CLIP-Dissect's ways to compare a unit with a concept (Oikarinen & Weng, ICLR 2023), from the published formulas.

All take `likeness` float (n_images, n_concepts), CLIP's cosine of each probing image with each concept, and
`activations` float (n_images, n_units), and give (n_units, n_concepts), higher is better. The constants are the
published defaults. Concepts and units are compared within one call: a prior over the units enters the PMI kinds,
so hand over all units of a layer, whichever of them are to be labelled.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_TINY = 1e-7


def cosine(likeness: Floats, activations: Floats) -> Floats:
    """Cosine of the two columns."""
    found: Floats = _length_one(activations).T @ _length_one(likeness)
    return found


def wpmi(likeness: Floats, activations: Floats, *, top: int = 28, sharpness: float = 2, weight: float = 0.6) -> Floats:
    """log p(concept | the unit's `top` images) - weight * log p(concept)."""
    log_p = np.log(_softmax(sharpness * likeness) + _TINY)
    return _information(np.stack([log_p[images].sum(0) for images in _strongest(activations, top)]), weight)


def soft_wpmi(
    likeness: Floats,
    activations: Floats,
    *,
    top: int = 100,
    sharpness: float = 10,
    weight: float = 1,
    first: float = 0.998,
    last: float = 0.97,
) -> Floats:
    """As `wpmi`, but an image belongs to the unit's strongest only with a chance, from `first` falling to `last`."""
    p = _softmax(sharpness * likeness)
    strongest = _strongest(activations, top)
    count = strongest.shape[1]
    belongs = (first - np.arange(count) / count * (first - last))[:, None]
    given = np.stack([np.log(1 + belongs * (p[images] - 1) + _TINY).sum(0) for images in strongest])
    return _information(given, weight)


def rank_reorder(
    likeness: Floats, activations: Floats, *, fraction: float = 0.05, power: float = 3, scale: float = 0.5
) -> Floats:
    """How little a unit's activations on its strongest images move when they are put in the concept's order.

    Minus the mean of |change|^power, as a share of what a random order gets, over the mean likeness on those images to
    the power `scale`. The published code draws five random orders; here is their expectation.
    """
    strongest = _strongest(activations, max(2, int(len(activations) * fraction)))
    found = np.empty((activations.shape[1], likeness.shape[1]))
    for unit, images in enumerate(strongest):
        ordered = np.sort(activations[images, unit])  # ascending
        ranks = likeness[images].argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
        moved = (np.abs(ordered[ranks] - activations[images, unit][:, None]) ** power).mean(axis=0)
        by_chance = float((np.abs(ordered[:, None] - ordered) ** power).mean())
        mean = np.maximum(likeness[images].mean(0), _TINY)
        found[unit] = -moved / ((by_chance or 1.0) * mean**scale)
    return found


def cosine_cubed(likeness: Floats, activations: Floats) -> Floats:
    """Cosine of the two columns, each less its mean and to the third power, so that the strongest images count most."""
    one, other = ((table - table.mean(0)) ** 3 for table in (activations, likeness))
    least = 1e-3
    lengths = [np.maximum(np.linalg.norm(table, axis=0), least) for table in (one, other)]
    return np.asarray((one / lengths[0]).T @ (other / lengths[1]), np.float64)


SIMILARITIES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "soft-wpmi": soft_wpmi,
    "wpmi": wpmi,
    "rank-reorder": rank_reorder,
    "cosine": cosine,
    "cosine-cubed": cosine_cubed,
}


def _information(given: Floats, weight: float) -> Floats:
    """log p(concept | unit) (n_units, n_concepts) -> minus `weight` times the log of its mean over the units."""
    top = given.max(axis=0)
    prior = top + np.log(np.exp(given - top).mean(axis=0))
    found: Floats = given - weight * prior
    return found


def _strongest(activations: Floats, top: int) -> npt.NDArray[np.int64]:
    """(n_units, top or fewer): each unit's strongest images; of equal ones the first."""
    found: npt.NDArray[np.int64] = np.argsort(-activations, axis=0, kind="stable")[:top].T
    return found


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def _length_one(columns: Floats) -> Floats:
    return columns / np.maximum(np.linalg.norm(columns, axis=0, keepdims=True), 1e-12)
