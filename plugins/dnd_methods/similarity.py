"""CLIP-Dissect's ways to compare a unit with a concept (Oikarinen & Weng, ICLR 2023), from the published formulas.

All take the `Likeness` of images and concepts and `activations` float32 (n_images, n_units), and give rows of
(n_units, n_concepts), higher is better, some units at a time. The constants are the published defaults. Concepts and
units are compared within one call: a prior over the units enters the PMI kinds, so hand over all units of a layer,
whichever of them are to be labelled. All is float32 and done in blocks.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_TINY = 1e-7
_AT_ONCE = 256
"""Units, or images, that are worked on together."""
_CONCEPTS = 1024
_IN_MEMORY = 1 << 29
"""Bytes; larger tables of units and concepts lie in a temporary file."""


class Likeness:
    """CLIP's cosine of each image with each concept, (n_images, n_concepts), computed where it is needed."""

    def __init__(self, images: Floats, texts: Floats) -> None:
        """Embeddings of length 1: (n_images, d) and (n_concepts, d)."""
        self._images, self._texts = images.astype(np.float32, copy=False), texts.astype(np.float32, copy=False)
        self.shape = len(images), len(texts)

    def rows(self, images: npt.NDArray[np.int64]) -> Floats:
        """(len(images), n_concepts)."""
        return np.asarray(self._images[images] @ self._texts.T)

    def columns(self, concepts: slice) -> Floats:
        """(n_images, concepts of the slice)."""
        return np.asarray(self._images @ self._texts[concepts].T)


def cosine(likeness: Likeness, activations: Floats) -> Iterator[Floats]:
    """Cosine of the two columns."""
    return _cosines(likeness, activations, lambda columns: _length_one(columns, 1e-12))


def cosine_cubed(likeness: Likeness, activations: Floats) -> Iterator[Floats]:
    """Cosine of the two columns, each less its mean and to the third power, so that the strongest images count most."""
    return _cosines(likeness, activations, lambda columns: _length_one((columns - columns.mean(0)) ** 3, 1e-3))


def wpmi(
    likeness: Likeness, activations: Floats, *, top: int = 28, sharpness: float = 2, weight: float = 0.6
) -> Iterator[Floats]:
    """log p(concept | the unit's `top` images) - weight * log p(concept)."""
    return _information(likeness, activations, top, sharpness, weight, lambda p: np.log(p + np.float32(_TINY)))


def soft_wpmi(
    likeness: Likeness,
    activations: Floats,
    *,
    top: int = 100,
    sharpness: float = 10,
    weight: float = 1,
    first: float = 0.998,
    last: float = 0.97,
) -> Iterator[Floats]:
    """As `wpmi`, but an image belongs to the unit's strongest only with a chance, from `first` falling to `last`."""
    count = min(top, len(activations))
    belongs = (first - np.arange(count) / count * (first - last))[:, None].astype(np.float32)
    rest = (1 + _TINY - belongs.astype(np.float64)).astype(np.float32)  # beside 1, float32 would lose what p says
    return _information(likeness, activations, top, sharpness, weight, lambda p: np.log(rest + belongs * p))


def rank_reorder(
    likeness: Likeness, activations: Floats, *, fraction: float = 0.05, power: float = 3, scale: float = 0.5
) -> Iterator[Floats]:
    """How little a unit's activations on its strongest images move when they are put in the concept's order.

    Minus the mean of |change|^power, as a share of what a random order gets, over the mean likeness on those images to
    the power `scale`. The published code draws five random orders; here is their expectation.
    """
    for unit, images in enumerate(_strongest(activations, max(2, int(len(activations) * fraction)))):
        seen, own = likeness.rows(images), np.asarray(activations[images, unit])
        ordered = np.sort(own)  # ascending
        ranks = seen.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
        moved = (np.abs(ordered[ranks] - own[:, None]) ** power).mean(axis=0)
        by_chance = np.mean([(np.abs(ordered - value) ** power).mean() for value in ordered])
        yield (-moved / ((float(by_chance) or 1.0) * np.maximum(seen.mean(0), _TINY) ** scale))[None]


SIMILARITIES: dict[str, Callable[[Likeness, Floats], Iterator[Floats]]] = {
    "soft-wpmi": soft_wpmi,
    "wpmi": wpmi,
    "rank-reorder": rank_reorder,
    "cosine": cosine,
    "cosine-cubed": cosine_cubed,
}


def _information(
    likeness: Likeness,
    activations: Floats,
    top: int,
    sharpness: float,
    weight: float,
    log_p: Callable[[Floats], Floats],
) -> Iterator[Floats]:
    """log p(concept | unit), the sum of `log_p` of p(concept | image) (top, n_concepts) over the unit's `top` images,
    less `weight` times the log of its mean over the units."""
    strongest = _strongest(activations, top)
    images, places = np.unique(strongest, return_inverse=True)
    places = places.reshape(strongest.shape)
    p = np.empty((len(images), likeness.shape[1]), np.float32)
    for block in _blocks(len(images), _AT_ONCE):
        p[block] = _softmax(np.float32(sharpness) * likeness.rows(images[block]))
    given = _table(len(places), likeness.shape[1])
    highest, total = np.full(likeness.shape[1], -np.inf), np.zeros(likeness.shape[1])
    for block in _blocks(len(places), _AT_ONCE):
        for unit in range(len(places))[block]:
            given[unit] = log_p(p[places[unit]]).sum(0)
        before, highest = highest, np.maximum(highest, given[block].max(0))
        total = total * np.exp(before - highest) + np.exp(given[block] - highest).sum(0)
    prior = (weight * (highest + np.log(total / len(places)))).astype(np.float32)
    for block in _blocks(len(places), _AT_ONCE):
        yield given[block] - prior


def _cosines(likeness: Likeness, activations: Floats, shaped: Callable[[Floats], Floats]) -> Iterator[Floats]:
    """Products of the columns of both, `shaped` to length 1."""
    found = _table(activations.shape[1], likeness.shape[1])
    for concepts in _blocks(likeness.shape[1], _CONCEPTS):
        columns = shaped(likeness.columns(concepts))
        for units in _blocks(activations.shape[1], _AT_ONCE):
            found[units, concepts] = shaped(np.asarray(activations[:, units])).T @ columns
    for units in _blocks(activations.shape[1], _AT_ONCE):
        yield found[units]


def _strongest(activations: Floats, top: int) -> npt.NDArray[np.int64]:
    """(n_units, top or fewer): each unit's strongest images; of equal ones the first."""
    top = min(top, len(activations))
    found = np.empty((activations.shape[1], top), np.int64)
    for units in _blocks(activations.shape[1], _AT_ONCE):
        weakest_first = np.negative(activations[:, units].T)  # (units, n_images)
        limits = np.partition(weakest_first, top - 1, axis=1)[:, top - 1]
        for unit, (values, limit) in enumerate(zip(weakest_first, limits, strict=True), units.start):
            images = np.flatnonzero(values <= limit)
            if len(images) < top:  # not finite
                images = np.arange(len(values))
            found[unit] = images[np.argsort(values[images], kind="stable")[:top]]
    return found


def _table(units: int, concepts: int) -> Floats:
    if units * concepts * 4 <= _IN_MEMORY:
        return np.empty((units, concepts), np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(units, concepts))


def _blocks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _softmax(values: Floats) -> Floats:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    found: Floats = powers / powers.sum(axis=1, keepdims=True)
    return found


def _length_one(columns: Floats, least: float) -> Floats:
    return np.asarray(columns / np.maximum(np.linalg.norm(columns, axis=0, keepdims=True), np.float32(least)))
