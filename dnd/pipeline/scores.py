"""Stage 5: the scorer's word on every candidate of every unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from dnd.api import Evidence, Unit
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_scores, counted
from dnd.store.keys import digest_of

SCORES = pa.schema([("key", pa.string()), ("scores", pa.list_(pa.float64()))])


def score_stage(
    job: Job, units: Sequence[Unit], evidence_of: Callable[[Unit], Evidence]
) -> Callable[[Unit], tuple[float, ...]]:
    """What gives the scores of a unit's candidates; units without are marked failed."""
    backend, key = job.backend("scorer")
    stats = job.stats("scores", key)
    items, keys = job.ledger(), job.ledger()
    for unit in units:
        name = _key(evidence_of(unit))
        items.add(name, unit)
        keys.add(str(unit), name)

    def score(batch: list[Unit]) -> list[list[float]]:
        whole = [evidence_of(unit) for unit in batch]
        answers = counted(backend.score(whole), len(whole))
        return [checked_scores(answer, len(one.concepts)) for answer, one in zip(answers, whole, strict=True)]

    job.map(
        stats,
        job.table(stats, SCORES),
        items,
        backend,
        score,
        lambda done: [{"key": key, "scores": scores} for key, _, scores in done],
        lambda row: tuple(row["scores"]),
    )
    for unit in units if stats.failures else ():
        if (name := keys.item(str(unit))) in stats.failures:
            job.failed[unit] = stats.failures[name]
    return lambda unit: items[keys.item(str(unit))]


def _key(evidence: Evidence) -> str:
    return digest_of(
        {
            "exemplars": [p.digest for p in evidence.exemplars],
            "exemplar_activations": [f"{v:.5g}" for v in evidence.exemplar_activations],
            "concepts": list(evidence.concepts),
            "images": [[p.digest for p in row] for row in evidence.images],
            "activations": [f"{v:.5g}" for row in evidence.activations for v in row],
            "sample": [p.digest for p in evidence.sample],
            "sample_activations": [f"{v:.5g}" for v in evidence.sample_activations],
        }
    )
