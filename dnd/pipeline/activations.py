"""What the target makes of the synthetic images: every distinct one goes through it once, for all units."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Backend, Picture, Unit
from dnd.pipeline.job import Job
from dnd.store.keys import stage_key
from dnd.store.ledger import Ledger
from dnd.target.hooked import HookedTarget

ACTIVATIONS = pa.schema([("key", pa.string()), ("values", pa.binary())])


class TargetRunner(Backend):
    """The target in a backend's clothes, so that one loop serves both."""

    name = "target"

    def __init__(self, hooked: HookedTarget) -> None:
        self.hooked = hooked

    def load(self) -> None:
        self.hooked.__enter__()
        self.batch_size = self.hooked.batch_size

    def close(self) -> None:
        self.hooked.__exit__(None, None, None)

    def run(self, pictures: Sequence[Picture]) -> list[bytes]:
        """Pooled activations of all units of all layers, joined in the layers' order: float32 bytes per image."""
        pooled = self.hooked.pooled_images([picture.open() for picture in pictures])
        return [
            b"".join(pooled[layer][row].astype("<f4", copy=False).tobytes() for layer in self.hooked.layers)
            for row in range(len(pictures))
        ]


def activation_stage(
    job: Job,
    hooked: HookedTarget,
    identity: str,
    units: Sequence[Unit],
    concepts_of: Callable[[Unit], Sequence[str]],
    drawn: Ledger,
) -> Callable[[Unit], npt.NDArray[np.float32]]:
    """What gives a unit's activations on the images of its candidates, (n_concepts, n_images); units that lack one are
    marked failed, and so are those that are not finite on one. `drawn` is what the image stage found."""
    parts = {"target": identity, "layers": list(hooked.layers), "pooling": hooked.pooling}
    stats = job.stats("activations", stage_key("activations", 1, parts))
    runner = TargetRunner(hooked)
    layers = dict(zip(hooked.layers, np.cumsum([0, *hooked.layer_sizes().values()]).tolist(), strict=False))
    numbers: dict[str, int] = {}
    """Of each distinct concept."""
    places: dict[Unit, slice] = {}
    """Where a unit's candidates are among all candidates of all units."""
    concepts, columns = array("i"), array("i")
    for unit in units:
        first = len(concepts)
        for concept in concepts_of(unit):
            concepts.append(numbers.setdefault(concept, len(numbers)))
            columns.append(layers[unit.layer] + unit.index)
        places[unit] = slice(first, len(concepts))
    number_of, column_of = np.frombuffer(concepts, np.int32), np.frombuffer(columns, np.int32)
    by_concept = np.argsort(number_of, kind="stable").astype(np.int32)
    ends = np.searchsorted(number_of[by_concept], np.arange(len(numbers) + 1))
    values = np.full((len(concepts), job.run.images.n), np.nan, np.float32)
    items = job.ledger()
    again: dict[str, list[tuple[int, int]]] = {}
    for concept, number in numbers.items():
        for place, digest in enumerate(drawn[concept]):
            if not items.add(digest, (digest, number, place)):  # the same picture was drawn before
                again.setdefault(digest, []).append((number, place))

    def run(batch: list[tuple[str, int, int]]) -> list[bytes]:
        return runner.run([job.store.picture(digest) for digest, _, _ in batch])

    def put(row: dict[str, Any]) -> None:
        line = np.frombuffer(row["values"], "<f4")
        for number, place in [items.item(row["key"])[1:], *again.get(row["key"], ())]:
            candidates = by_concept[ends[number] : ends[number + 1]]
            values[candidates, place] = line[column_of[candidates]]

    table = job.table(stats, ACTIVATIONS)
    job.map(stats, table, items, runner, run, lambda done: [{"key": k, "values": v} for k, _, v in done], put)
    for unit in units if stats.failures else ():
        digests = (digest for concept in concepts_of(unit) for digest in drawn[concept])
        lost = next((digest for digest in digests if digest in stats.failures), None)
        if lost is not None:
            job.failed[unit] = stats.failures[lost]
    for unit in units:
        if unit not in job.failed and not np.isfinite(values[places[unit]]).all():
            job.failed[unit] = f"{stats.name}: its activations on synthetic images are not finite (NaN or infinite)"
    return lambda unit: values[places[unit]]  # without `concepts_of`, which knows who holds this function
