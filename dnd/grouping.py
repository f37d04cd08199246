"""The stage that puts a unit's exemplars into groups.

Groups are found in what the target itself makes of the exemplars: the pooled activations of all units of the unit's
layer, each scaled by its mean and deviation on the random sample of the probing set. Which other units a run labels
has no part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dnd.api import Unit
from dnd.groups import clusters
from dnd.stages import ACTIVATIONS, Job, TargetRunner
from dnd.store import stage_key

if TYPE_CHECKING:
    from dnd.exemplars import ExemplarResult
    from dnd.watched import Watched


def group_stage(
    job: Job, watched: Watched, identity: str, result: ExemplarResult, units: Sequence[Unit]
) -> dict[Unit, tuple[int, ...]]:
    """The group of each of a unit's exemplars, from 0, in the order of their strongest members. Units of which an
    exemplar did not go through the target are marked failed."""
    parts = {"target": identity, "layers": list(watched.layers), "pooling": watched.pooling}
    tally = job.tally("groups", stage_key("groups", 1, parts))
    table = job.table(tally, ACTIVATIONS)
    runner = TargetRunner(watched, job.run.batch_size)
    wanted = {unit: [exemplar.digest for exemplar in result.exemplars(unit)] for unit in units}
    items = {digest: job.store.picture(digest) for digests in wanted.values() for digest in digests}
    job.map(tally, table, items, runner, runner.run, lambda done: [{"key": k, "values": v} for k, _, v in done])
    rows = {line["key"]: np.frombuffer(line["values"], "<f4") for line in table.read(set(items))}
    sizes = watched.layer_sizes()
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())).tolist(), strict=True))
    found = {}
    for unit, digests in wanted.items():
        lost = next((digest for digest in digests if digest not in rows), None)
        if lost is not None:
            job.failed[unit] = tally.failures[lost]
            continue
        part = slice(ends[unit.layer] - sizes[unit.layer], ends[unit.layer])
        points = np.stack([rows[digest][part] for digest in digests]).astype(np.float64)
        mean, deviation = result.scale(unit.layer)
        found[unit] = clusters((points - mean) / deviation, job.run.concepts.clusters)
    return found
