"""What a unit makes of images for being synthetic, whatever they show: the images of other units' labels.

Synthetic images differ from photographs in ways of their own, and many a unit that responds to nothing in particular
responds to those. So a candidate's images are compared not only with random probing images but also with as many images
of each of some other labels. The median over these labels is kept: the unit may respond to a few of them, and rightly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from dnd.api import Unit, base_form, derive_seed

MOST, LEAST = 32, 8
"""Labels that a unit's candidates are compared with at most; with fewer than the least there is no comparison."""
_POOL = 2 * MOST
"""Labels of which the activations of all units are held: some share a word with a unit's candidates."""
_SMALL = frozenset({"of", "in", "on", "at", "and", "or", "with", "by", "for", "from", "to", "no"})


def control_labels(labels: Iterable[str], seed: int) -> list[str]:
    """A random choice of the labels of all units, which another unit hardly changes."""
    return sorted(set(labels), key=lambda label: derive_seed(seed, "controls", label))[:_POOL]


class Controls:
    """What units make of the images of some labels."""

    def __init__(self, pool: Mapping[str, npt.NDArray[np.float32]], units: Sequence[Unit]) -> None:
        """`pool` has the units' activations by label: (n_images, n_units)."""
        self._pool = [(_words(label), values) for label, values in pool.items()]
        self._columns = {unit: column for column, unit in enumerate(units)}

    def of(self, unit: Unit, concepts: Iterable[str]) -> npt.NDArray[np.float32] | None:
        """The unit's activations on the images of labels that share no word with these, its candidates: (n_labels,
        n_images). None where too few labels are left."""
        own, column = set[str]().union(*map(_words, concepts)), self._columns[unit]
        rows = (values[:, column] for words, values in self._pool if own.isdisjoint(words))
        found = list(islice((row for row in rows if np.isfinite(row).all()), MOST))
        return np.stack(found) if len(found) >= LEAST else None


def control_auc(activations: npt.NDArray[np.float32], controls: npt.NDArray[np.float32]) -> float:
    """The median over `controls` (n_labels, m) of `dnd.api.auc` of the activations (n,) against each of them."""
    own = activations[:, None, None]
    return float(np.median(((own > controls) + 0.5 * (own == controls)).mean((0, 2))))


def _words(concept: str) -> set[str]:
    return set(base_form(concept).split()) - _SMALL
