"""The stage that puts a unit's exemplars into groups.

Groups are found in what the target itself makes of the exemplars: the pooled activations of all units of the unit's
layer, each scaled by its mean and deviation on the random sample of the probing set. Which other units a run labels
has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from dnd.api import Unit
from dnd.pipeline.activations import ACTIVATIONS, TargetRunner
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.job import Job
from dnd.store.keys import stage_key
from dnd.target.hooked import HookedTarget


def cluster_stage(
    job: Job, hooked: HookedTarget, identity: str, result: ExemplarResult, units: Sequence[Unit]
) -> Callable[[Unit], tuple[int, ...]]:
    """What gives the group of each of a unit's exemplars, from 0, in the order of their strongest members. Units of
    which an exemplar did not go through the target are marked failed."""
    parts = {"target": identity, "layers": list(hooked.layers), "pooling": hooked.pooling}
    stats = job.stats("groups", stage_key("groups", 1, parts))
    runner = TargetRunner(hooked)
    items, found = job.ledger(), job.ledger()
    for unit in units:
        for digest, _ in result.images(unit):
            items.add(digest, digest)
    job.map(
        stats,
        job.table(stats, ACTIVATIONS),
        items,
        runner,
        lambda digests: runner.run([job.store.picture(digest) for digest in digests]),
        lambda done: [{"key": key, "values": values} for key, _, values in done],
        lambda row: row["values"],
    )
    sizes = hooked.layer_sizes()
    ends = dict(zip(sizes, np.cumsum(list(sizes.values())).tolist(), strict=True))
    scales = {layer: result.scale(layer) for layer in {unit.layer for unit in units}}
    for unit in units:
        digests = [digest for digest, _ in result.images(unit)]
        lost = next((digest for digest in digests if digest in stats.failures), None)
        if lost is not None:
            job.failed[unit] = stats.failures[lost]
            continue
        part = slice(ends[unit.layer] - sizes[unit.layer], ends[unit.layer])
        points = np.stack([np.frombuffer(items[digest], "<f4")[part] for digest in digests]).astype(np.float64)
        mean, deviation = scales[unit.layer]
        found.add(str(unit))
        found.settle(str(unit), clusters((points - mean) / deviation, job.run.concepts.clusters))
    return lambda unit: found.get(str(unit)) or ()


Floats = npt.NDArray[np.float64]


def clusters(points: Floats, n: int) -> tuple[int, ...]:
    """(n_points, d) -> the cluster of each by Ward's method, at most `n` of them, numbered by their first point."""
    from scipy.cluster.hierarchy import fcluster, ward  # type: ignore[import-untyped]

    if len(points) < 2 or n < 2:
        return (0,) * len(points)
    raw = fcluster(ward(np.nan_to_num(points)), n, "maxclust").tolist()
    order = {cluster: place for place, cluster in enumerate(dict.fromkeys(raw))}
    return tuple(order[cluster] for cluster in raw)
