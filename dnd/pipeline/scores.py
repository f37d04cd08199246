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
) -> dict[Unit, tuple[float, ...]]:
    """The scores of each unit's candidates; units without are marked failed, and left out."""
    backend, key = job.backend("scorer")
    stats = job.stats("scores", key)

    def score(batch: list[Unit]) -> list[list[float]]:
        whole = [evidence_of(unit) for unit in batch]
        answers = counted(backend.score(whole), len(whole))
        return [checked_scores(answer, len(one.concepts)) for answer, one in zip(answers, whole, strict=True)]

    keys = {unit: _key(evidence_of(unit)) for unit in units}
    items: dict[str, Unit] = {}
    for unit, name in keys.items():
        items.setdefault(name, unit)
    scores = job.map(stats, job.table(stats, SCORES), items, backend, score, answer=lambda row: tuple(row["scores"]))
    job.mark_failed(stats, {unit: (name,) for unit, name in keys.items()})
    return {unit: scores[name] for unit, name in keys.items() if unit not in job.failed}


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
