"""What the target makes of the synthetic images: every distinct one goes through it once, for all units.

Of an image the activations of all units of all layers are kept, which serve other runs too, unless they are very many:
then those of the units that hold its concept, for a million images with half a million activations each take terabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from dnd.api import Picture, Unit
from dnd.pipeline.job import Job
from dnd.runtime.stats import StageStats
from dnd.store.keys import digest_of, stage_key
from dnd.target.hooked import HookedTarget
from dnd.target.preprocess import stack

ACTIVATIONS = pa.schema([("key", pa.string()), ("values", pa.binary())])
"""Of an image (see `_key`): float32 of all units of all layers in the layers' order, or of some of them."""
WIDE = 4096
"""Units in all layers from which on those of an image are not all kept."""
Places = tuple[int, ...] | None
"""Of units among those of all layers, ascending; None for all."""


def activations_on(hooked: HookedTarget, pictures: Sequence[Picture]) -> list[bytes]:
    """Pooled activations of all units of all layers, joined in the layers' order: float32 bytes per image."""
    pooled = hooked.pooled_images([picture.open() for picture in pictures])
    return [row.tobytes() for row in _joined(hooked, pooled)]


def _joined(hooked: HookedTarget, pooled: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.concatenate([pooled[layer] for layer in hooked.layers], 1).astype("<f4", copy=False)


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
    whole = _is_narrow(hooked)
    columns: dict[str, Places] = {
        digest: None if whole else tuple(sorted({column for concept, _ in of for _, _, column in wanted[concept]}))
        for digest, of in concepts.items()
    }

    def put(digest: str, values: npt.NDArray[np.float32]) -> None:
        own = columns[digest]
        value_of = values if own is None else dict(zip(own, values, strict=True))
        for concept, place in concepts[digest]:
            for unit, candidate, column in wanted[concept]:
                found[unit][candidate, place] = value_of[column]

    _observe(job, hooked, stats, columns, put)
    own = {unit: [one for one in concepts if one in images] for unit, concepts in candidates.items()}
    keys = {digest: _key(digest, places) for digest, places in columns.items()}
    job.mark_failed(stats, {unit: [keys[d] for c in some for d in images[c].values()] for unit, some in own.items()})
    for concept, units in wanted.items():
        for unit, candidate, _ in units:
            if unit not in job.failed and not np.isfinite(found[unit][candidate, list(images[concept])]).all():
                job.failed[unit] = f"{stats.name}: its activations on synthetic images are not finite (NaN or infinite)"


def activations_of(
    job: Job, hooked: HookedTarget, identity: str, digests: Sequence[str], units: Sequence[Unit]
) -> dict[str, npt.NDArray[np.float32]]:
    """By digest, the units' activations (n_units,) on images that the stage has seen; without images that it failed
    on. Where those of all units are not kept, the images go through the target once more."""
    stats, starts = _stats(job, hooked, identity), _starts(hooked)
    columns = [starts[unit.layer] + unit.index for unit in units]
    found: dict[str, npt.NDArray[np.float32]] = {}
    if _is_narrow(hooked):
        for row in job.table(stats, ACTIVATIONS).rows(keys=set(digests)):
            found[row["key"]] = np.frombuffer(row["values"], "<f4")[columns]
        return found
    places = sorted(columns)
    order = [places.index(column) for column in columns] if places != columns else slice(None)

    def put(digest: str, values: npt.NDArray[np.float32]) -> None:
        found[digest] = values[order]

    _observe(job, hooked, stats, dict.fromkeys(digests, tuple(places)), put)
    return found


def _observe(
    job: Job,
    hooked: HookedTarget,
    stats: StageStats,
    columns: Mapping[str, Places],
    put: Callable[[str, npt.NDArray[np.float32]], None],
) -> None:
    """Let the target see images, by digest, and `put` have the activations of the units that are wanted of each."""

    def work(batch: Sequence[tuple[torch.Tensor, Places]]) -> list[bytes]:
        pooled = hooked.pooled(stack([tensor for tensor, _ in batch]))
        rows = _joined(hooked, {layer: values.numpy() for layer, values in pooled.items()})
        return [(row if own is None else row[list(own)]).tobytes() for row, (_, own) in zip(rows, batch, strict=True)]

    job.map(
        stats,
        job.table(stats, ACTIVATIONS),
        {_key(digest, places): digest for digest, places in columns.items()},
        hooked,
        work,
        answer=lambda row: put(row["key"].partition(":")[0], np.frombuffer(row["values"], "<f4")),
        batch_size=lambda: hooked.batch_size,
        ahead=lambda digest: (hooked.prepare(job.store.picture(digest).open()), columns[digest]),
    )


def _key(digest: str, places: Places) -> str:
    return digest if places is None else f"{digest}:{digest_of(places)[:16]}"


def _is_narrow(hooked: HookedTarget) -> bool:
    return sum(hooked.layer_sizes().values()) < WIDE


def _starts(hooked: HookedTarget) -> dict[str, int]:
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
    starts = _starts(hooked)
    wanted: dict[str, list[tuple[Unit, int, int]]] = {}
    for unit, concepts in candidates.items():
        for candidate, concept in enumerate(concepts):
            if concept not in images:
                continue
            wanted.setdefault(concept, []).append((unit, candidate, starts[unit.layer] + unit.index))
    return wanted
