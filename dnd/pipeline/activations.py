"""What the target makes of the synthetic images: every distinct one goes through it once, for all units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Picture, Unit
from dnd.pipeline.job import Job
from dnd.runtime.stats import StageStats
from dnd.store.keys import stage_key
from dnd.target.hooked import HookedTarget
from dnd.target.preprocess import stack

ACTIVATIONS = pa.schema([("key", pa.string()), ("values", pa.binary())])


def activations_on(hooked: HookedTarget, pictures: Sequence[Picture]) -> list[bytes]:
    """Pooled activations of all units of all layers, joined in the layers' order: float32 bytes per image."""
    return _joined(hooked, hooked.pooled_images([picture.open() for picture in pictures]))


def _joined(hooked: HookedTarget, pooled: Mapping[str, npt.NDArray[np.float32]]) -> list[bytes]:
    rows = np.concatenate([pooled[layer] for layer in hooked.layers], 1).astype("<f4", copy=False)
    return [row.tobytes() for row in rows]


def activation_stage(
    job: Job,
    hooked: HookedTarget,
    identity: str,
    candidates: Mapping[Unit, Sequence[str]],
    images: Mapping[str, Mapping[int, str]],
    found: Mapping[Unit, npt.NDArray[np.float32]],
) -> None:
    """Write each unit's activations on these images of its candidates to its array (n_concepts, n_images) in `found`;
    mark units failed that have one missing or not finite. `images` are digests by concept and number."""
    stats = _stats(job, hooked, identity)
    wanted = _wanted(hooked, candidates, images)
    concepts: dict[str, list[tuple[str, int]]] = {}
    """Digest -> the concepts it is an image of, and which of theirs: the same may come of several."""
    for concept in wanted:
        for place, digest in images[concept].items():
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
        lambda inputs: _joined(hooked, {name: own.numpy() for name, own in hooked.pooled(stack(inputs)).items()}),
        answer=put,
        batch_size=lambda: hooked.batch_size,
        ahead=lambda digest: hooked.prepare(job.store.picture(digest).open()),
    )
    own = {unit: [one for one in concepts if one in images] for unit, concepts in candidates.items()}
    job.mark_failed(stats, {unit: [one for c in some for one in images[c].values()] for unit, some in own.items()})
    for concept, units in wanted.items():
        for unit, candidate, _ in units:
            if unit not in job.failed and not np.isfinite(found[unit][candidate, list(images[concept])]).all():
                job.failed[unit] = f"{stats.name}: its activations on synthetic images are not finite (NaN or infinite)"


def known_activations(
    job: Job, hooked: HookedTarget, identity: str, digests: Iterable[str]
) -> dict[str, npt.NDArray[np.float32]]:
    """By digest, the activations of all units of all layers on images that the stage has seen; see `columns`."""
    table = job.table(_stats(job, hooked, identity), ACTIVATIONS)
    return {row["key"]: np.frombuffer(row["values"], "<f4") for row in table.rows(keys=set(digests))}


def columns(hooked: HookedTarget) -> dict[str, int]:
    """Each layer's first place among the units of all layers."""
    sizes = hooked.layer_sizes()
    return dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))


def _stats(job: Job, hooked: HookedTarget, identity: str) -> StageStats:
    parts = {"target": identity, "layers": list(hooked.layers), "pooling": hooked.pooling}
    return job.stats("activations", stage_key("activations", 1, parts))


def _wanted(
    hooked: HookedTarget, candidates: Mapping[Unit, Sequence[str]], images: Mapping[str, object]
) -> dict[str, list[tuple[Unit, int, int]]]:
    """Concept with images -> the units that have it: which of their candidates it is, and the unit's place among those
    of all layers."""
    starts = columns(hooked)
    wanted: dict[str, list[tuple[Unit, int, int]]] = {}
    for unit, concepts in candidates.items():
        for candidate, concept in enumerate(concepts):
            if concept not in images:
                continue
            wanted.setdefault(concept, []).append((unit, candidate, starts[unit.layer] + unit.index))
    return wanted
