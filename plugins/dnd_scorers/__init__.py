"""The bundled scorers: how well each candidate concept explains a unit.

All scores are higher-is-better, and those that compare activations use ranks or the unit's own spread, so
that scores of units of different scale can be put side by side. CLIP looks at each distinct image once.
"""

from __future__ import annotations

from collections.abc import Iterable

from dnd import api
from dnd_scorers.clip import ClipRank, ImageProduct
from dnd_scorers.coverage import Coverage
from dnd_scorers.ranks import MeanActivation, TopKSquared


@api.hookimpl
def register_scorers() -> Iterable[type[api.Scorer]]:
    return [Coverage, ClipRank, ImageProduct, TopKSquared, MeanActivation]
