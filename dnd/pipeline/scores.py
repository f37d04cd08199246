"""Stage 5: the scorer's word on every candidate of every unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Bound, Evidence, Unit
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_bounds, checked_scores, checked_seen, counted, handed
from dnd.store.keys import digest_of, stage_key

SCORES = pa.schema([("key", pa.string()), ("scores", pa.list_(pa.float64()))])
BOUNDS = pa.schema([*SCORES, ("open", pa.list_(pa.bool_()))])
SEEN = pa.schema([("key", pa.string()), ("seen", pa.list_(pa.list_(pa.bool_())))])
T = TypeVar("T")
Columns = dict[str, Any]
"""Of a row, but for its key."""


def score_stage(
    job: Job, units: Sequence[Unit], evidence_of: Callable[[Unit], Evidence]
) -> dict[Unit, tuple[float, ...]]:
    """The scores of each unit's candidates; units without are marked failed, and left out."""
    backend, key = job.backend("scorer")

    def score(batch: list[Evidence]) -> list[Columns]:
        answers = zip(counted(backend.score(handed(batch)), len(batch)), batch, strict=True)
        return [{"scores": checked_scores(answer, len(one.concepts))} for answer, one in answers]

    return _judged(job, units, evidence_of, key, SCORES, score, lambda row: tuple(row["scores"]))


def bound_stage(
    job: Job, units: Sequence[Unit], evidence_of: Callable[[Unit], Evidence]
) -> dict[Unit, tuple[Bound, ...]]:
    """What each unit's candidates could score at best; units without an answer are marked failed, and left out."""
    backend, key = job.backend("scorer")

    def bound(batch: list[Evidence]) -> list[Columns]:
        answers = zip(counted(backend.bound(handed(batch)), len(batch)), batch, strict=True)
        found = [checked_bounds(answer, len(one.concepts)) for answer, one in answers]
        return [{"scores": [one.score for one in own], "open": [one.open for one in own]} for own in found]

    def answer(row: Columns) -> tuple[Bound, ...]:
        return tuple(map(Bound, row["scores"], row["open"]))

    return _judged(job, units, evidence_of, stage_key("bounds", 1, {"scorer": key}), BOUNDS, bound, answer)


def seen_stage(
    job: Job, units: Sequence[Unit], evidence_of: Callable[[Unit], Evidence]
) -> dict[Unit, npt.NDArray[np.bool_]]:
    """On which exemplars each unit's candidates can be seen, (n_concepts, n_exemplars)."""
    backend, key = job.backend("scorer")

    def see(batch: list[Evidence]) -> list[Columns]:
        answers = zip(counted(backend.seen(handed(batch)), len(batch)), batch, strict=True)
        return [{"seen": checked_seen(answer, one).tolist()} for answer, one in answers]

    def answer(row: Columns) -> npt.NDArray[np.bool_]:
        return np.array(row["seen"], bool)

    return _judged(job, units, evidence_of, stage_key("seen", 1, {"scorer": key}), SEEN, see, answer)


def _judged(
    job: Job,
    units: Sequence[Unit],
    evidence_of: Callable[[Unit], Evidence],
    key: str,
    schema: pa.Schema,
    judge: Callable[[list[Evidence]], list[Columns]],
    answer: Callable[[Columns], T],
) -> dict[Unit, T]:
    """Equal evidence is judged once."""
    stats = job.stats("scores", key)
    keys = {unit: _key(evidence_of(unit)) for unit in units}
    items: dict[str, Unit] = {}
    for unit, name in keys.items():
        items.setdefault(name, unit)
    found = job.map(
        stats,
        job.table(stats, schema),
        items,
        job.backend("scorer")[0],
        lambda batch: judge([evidence_of(unit) for unit in batch]),
        rows=lambda done: [{"key": key, **columns} for key, _, columns in done],
        answer=answer,
    )
    job.mark_failed(stats, {unit: (name,) for unit, name in keys.items()})
    return {unit: found[name] for unit, name in keys.items() if unit not in job.failed}


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
