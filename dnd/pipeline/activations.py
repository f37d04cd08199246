"""What the target makes of the synthetic images: every distinct one goes through it once, for all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Picture, Unit
from dnd.pipeline.job import Job
from dnd.store.keys import stage_key
from dnd.target.hooked import HookedTarget

ACTIVATIONS = pa.schema([("key", pa.string()), ("values", pa.binary())])


def activations_on(hooked: HookedTarget, pictures: Sequence[Picture]) -> list[bytes]:
    """Pooled activations of all units of all layers, joined in the layers' order: float32 bytes per image."""
    pooled = hooked.pooled_images([picture.open() for picture in pictures])
    return [
        b"".join(pooled[layer][row].astype("<f4", copy=False).tobytes() for layer in hooked.layers)
        for row in range(len(pictures))
    ]


def activation_stage(
    job: Job,
    hooked: HookedTarget,
    identity: str,
    candidates: Mapping[Unit, Sequence[str]],
    images: Mapping[str, Sequence[str]],
) -> dict[Unit, npt.NDArray[np.float32]]:
    """Each unit's activations on the images of its candidates, (n_concepts, n_images); units with one missing or not
    finite are marked failed. `images` are digests by concept."""
    parts = {"target": identity, "layers": list(hooked.layers), "pooling": hooked.pooling}
    stats = job.stats("activations", stage_key("activations", 1, parts))
    wanted = _wanted(hooked, candidates)
    found = {unit: np.full((len(own), job.run.images.n), np.nan, np.float32) for unit, own in candidates.items()}
    concepts: dict[str, list[tuple[str, int]]] = {}
    """Digest -> the concepts it is an image of, and which of theirs: the same may come of several."""
    for concept in wanted:
        for place, digest in enumerate(images[concept]):
            concepts.setdefault(digest, []).append((concept, place))

    def put(row: dict[str, Any]) -> None:
        values = np.frombuffer(row["values"], "<f4")
        for concept, place in concepts[row["key"]]:
            for unit, candidate, column in wanted[concept]:
                found[unit][candidate, place] = values[column]

    job.map(
        stats,
        job.table(stats, ACTIVATIONS),
        {digest: digest for digest in concepts},
        hooked,
        lambda digests: activations_on(hooked, [job.store.picture(digest) for digest in digests]),
        answer=put,
        batch_size=lambda: hooked.batch_size,
    )
    job.mark_failed(
        stats, {unit: [one for concept in own for one in images[concept]] for unit, own in candidates.items()}
    )
    for unit, values in found.items():
        if unit not in job.failed and not np.isfinite(values).all():
            job.failed[unit] = f"{stats.name}: its activations on synthetic images are not finite (NaN or infinite)"
    return found


def _wanted(hooked: HookedTarget, candidates: Mapping[Unit, Sequence[str]]) -> dict[str, list[tuple[Unit, int, int]]]:
    """Concept -> the units that have it: which of their candidates it is, and the unit's place among those of all
    layers."""
    sizes = hooked.layer_sizes()
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    wanted: dict[str, list[tuple[Unit, int, int]]] = {}
    for unit, concepts in candidates.items():
        for candidate, concept in enumerate(concepts):
            wanted.setdefault(concept, []).append((unit, candidate, starts[unit.layer] + unit.index))
    return wanted
