"""Units by free text: ranked by how near their labels are to it in meaning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnd.api import Unit
from dnd.errors import UsageError
from dnd.models.encoder import embed
from dnd.results.run import RunFolder

if TYPE_CHECKING:
    from dnd.models.encoder import Encoder


@dataclass(frozen=True)
class Hit:
    """A unit and the one of its labels that is nearest to the text."""

    unit: Unit
    label: str
    nearness: float
    """Cosine of the embeddings, -1..1."""
    place: int
    """1 for the unit's first label."""
    of: int
    """How many labels it has."""
    score: float
    """The label's own."""


def find_units(
    run: RunFolder, text: str, encoder: Encoder, *, layers: Collection[str] = (), among: int = 1
) -> list[Hit]:
    """Every labelled unit (of some layers, if given), nearest first; equally near ones in the run's order. The first
    `among` labels of a unit count."""
    if not text.strip():
        raise UsageError("there is no text to look for", 'Say what a label should mean: "water".')
    unknown = [layer for layer in layers if layer not in run.layers]
    if unknown:
        raise UsageError(f"the run in {run.folder} has no layer {unknown[0]!r}", f"It has {', '.join(run.layers)}.")
    labelled = [one for one in run.labels if one.labels and (not layers or one.unit.layer in layers)]
    words = sorted({concept for one in labelled for concept, _ in one.labels[:among]})
    if not words:
        return []
    vectors = embed(encoder, [text.strip().lower(), *words])
    near = dict(zip(words, (vectors[1:] @ vectors[0]).tolist(), strict=True))
    hits = []
    for one in labelled:
        place = max(range(len(one.labels[:among])), key=lambda at, one=one: near[one.labels[at][0]])  # type: ignore[misc]
        concept, score = one.labels[place]
        hits.append(Hit(one.unit, concept, near[concept], place + 1, len(one.labels), score))
    return sorted(hits, key=lambda hit: -hit.nearness)
