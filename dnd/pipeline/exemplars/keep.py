"""An exemplar, and how the exemplars of a unit are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from dnd.api import Box, ProbingSet, Unit
from dnd.pipeline.exemplars.crop import Candidate
from dnd.probing.prefetch import open_again
from dnd.results.unit import Exemplar
from dnd.store.images import Store
from dnd.target.attention import Attention
from dnd.target.geometry import cut

EXEMPLARS = pa.schema(
    [
        ("key", pa.string()),  # str(Unit)
        ("images", pa.list_(pa.string())),  # digests in the store
        ("sources", pa.list_(pa.string())),
        ("boxes", pa.list_(pa.list_(pa.float64()))),  # empty for whole images
        ("activations", pa.list_(pa.float32())),
        ("views", pa.list_(pa.string())),  # digests of the whole source, small; empty for whole images
        ("attention", pa.list_(pa.list_(pa.list_(pa.float64())))),  # every box of the unit in the source
        ("maps", pa.list_(pa.binary())),  # `Attention.packed`, or empty
        ("frames", pa.list_(pa.list_(pa.float64()))),  # `Attention.frame`, or empty
        ("reason", pa.string()),  # why there are none, or ""
    ]
)
_VIEW = 512
"""Pixels that the view of a crop's source has along an edge at most."""


def keep_exemplars(
    chosen: Mapping[Unit, Sequence[Candidate]],
    everything: Mapping[Unit, Sequence[Candidate]],
    store: Store,
    probing: ProbingSet,
    workers: int,
) -> list[dict[str, Any]]:
    """Put the exemplars of some units into the store; the units' rows. `everything` has the rest of their crops."""
    wanted: dict[int, set[Box | None]] = {}
    for candidates in chosen.values():
        for candidate in candidates:
            wanted.setdefault(candidate.image, set()).add(candidate.box)

    def put(item: tuple[int, set[Box | None]]) -> list[tuple[tuple[int, Box | str | None], str]]:
        image = open_again(probing, item[0])
        found: list[tuple[tuple[int, Box | str | None], str]] = [
            ((item[0], box), store.put_image(cut(image, box) if box else image).digest) for box in item[1]
        ]
        if item[1] != {None}:
            image.thumbnail((_VIEW, _VIEW))  # after the crops were cut from it
            found.append(((item[0], "view"), store.put_image(image).digest))
        return found

    with ThreadPoolExecutor(workers) as pool:
        digests = dict(pair for pairs in pool.map(put, wanted.items()) for pair in pairs)
    return [_row(unit, candidates, everything[unit], digests, probing) for unit, candidates in chosen.items()]


def _row(
    unit: Unit,
    candidates: Sequence[Candidate],
    everything: Sequence[Candidate],
    digests: Mapping[tuple[int, Box | str | None], str],
    probing: ProbingSet,
) -> dict[str, Any]:
    whole = {c.image: c.attention for c in everything if c.box is None}
    boxes: dict[int, list[list[float]]] = {}
    for c in everything:
        if c.box is not None:
            boxes.setdefault(c.image, []).append(list(c.box))
    seen = [whole.get(c.image) for c in candidates]
    return {
        "key": str(unit),
        "images": [digests[c.image, c.box] for c in candidates],
        "sources": [probing.image_name(c.image) for c in candidates],
        "boxes": [list(c.box or ()) for c in candidates],
        "activations": [c.activation for c in candidates],
        "views": ["" if c.box is None else digests[c.image, "view"] for c in candidates],
        "attention": [boxes.get(c.image, []) for c in candidates],
        "maps": [a.packed if a else b"" for a in seen],
        "frames": [list(a.frame) if a else [] for a in seen],
        "reason": "" if candidates else "its activations are not finite (NaN or infinite)",
    }


def exemplar_of(
    digest: str,
    source: str,
    box: Sequence[float],
    activation: float,
    view: str,
    boxes: Sequence[Sequence[float]],
    packed: bytes,
    frame: Sequence[float],
) -> Exemplar:
    """An exemplar from its place in the columns of a row."""
    return Exemplar(
        digest,
        source,
        Box(*box) if box else None,
        activation,
        view,
        tuple(Box(*one) for one in boxes),
        Attention(packed, Box(*frame)) if packed else None,
    )
