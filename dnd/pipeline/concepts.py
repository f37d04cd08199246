"""Stage 3: candidate concepts of every unit, from its captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from dnd.api import Picture, SummaryRequest, Unit, derive_seed
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_concepts, counted
from dnd.store.keys import digest_of
from dnd.store.ledger import Ledger

CONCEPTS = pa.schema([("key", pa.string()), ("concepts", pa.list_(pa.string()))])


def summary_request(job: Job, unit: Unit, captions: tuple[str, ...], pictures: tuple[Picture, ...]) -> SummaryRequest:
    """What the summarizer is asked about a unit: its captions or, where there are none, its exemplars."""
    seed = derive_seed(job.run.seed, "concepts", unit)
    return SummaryRequest(captions, job.run.concepts.n, seed, () if captions else pictures)


def concept_stage(job: Job, units: Sequence[Unit], request: Callable[[Unit], SummaryRequest]) -> Ledger:
    """By unit, its candidate concepts; units without an answer are marked failed."""
    backend, key = job.backend("summarizer")
    stats = job.stats("concepts", key)
    items, found = job.ledger(), job.ledger()
    for unit in units:
        name = _key(one := request(unit))
        items.add(name, one)
        found.add(str(unit), (unit, name))

    def summarize(batch: list[SummaryRequest]) -> list[list[str]]:
        answers = counted(backend.summarize(batch), len(batch))
        return [checked_concepts(answer, request.n_concepts) for answer, request in zip(answers, batch, strict=True)]

    job.map(
        stats,
        job.table(stats, CONCEPTS),
        items,
        backend,
        summarize,
        lambda done: [{"key": key, "concepts": concepts} for key, _, concepts in done],
        lambda row: tuple(row["concepts"]),
    )
    for page in found.batches(1024):
        for name, (unit, key) in page:
            if answer := items.get(key):
                found.settle(name, answer)
            else:
                job.failed[unit] = stats.failures[key]
    return found


def _key(request: SummaryRequest) -> str:
    images = [[picture.digest for picture in request.images]] if request.images else []
    return digest_of([list(request.captions), request.n_concepts, request.seed, *images])
