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


def summary_requests(
    job: Job, unit: Unit, captions: tuple[str, ...], pictures: tuple[Picture, ...], groups: tuple[int, ...]
) -> list[SummaryRequest]:
    """What the summarizer is asked about a unit: its captions or, where there are none, its exemplars; in one request,
    or in one for each group of exemplars."""
    parts = max(groups, default=0) + 1
    n = max(1, job.run.concepts.n // parts)
    found = []
    for group in range(parts):
        seed = derive_seed(job.run.seed, "concepts", unit, *([group] if parts > 1 else []))
        chosen = [i for i in range(len(captions or pictures)) if parts == 1 or groups[i] == group]
        own = () if captions else tuple(pictures[i] for i in chosen)
        found.append(SummaryRequest(tuple(captions[i] for i in chosen if captions), n, seed, own))
    return found


def concept_stage(
    job: Job, units: Sequence[Unit], requests: Callable[[Unit], Sequence[SummaryRequest]]
) -> tuple[Ledger, dict[Unit, dict[int, str]]]:
    """By unit, its candidate concepts, each with the numbers of the unit's requests that it answers; units without an
    answer are marked failed. And of units with some, why other requests have none, by their numbers."""
    backend, key = job.backend("summarizer")
    stats = job.stats("concepts", key)
    items, found = job.ledger(), job.ledger()
    for unit in units:
        asked = {_key(request): request for request in requests(unit)}
        for name, request in asked.items():
            items.add(name, request)
        found.add(str(unit), (unit, list(asked)))

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
    unanswered: dict[Unit, dict[int, str]] = {}
    for page in found.batches(1024):
        for name, (unit, keys) in page:
            answers = [items.get(key) or () for key in keys]
            if any(answers):
                found.settle(name, merge(answers))
                if not all(answers):
                    unanswered[unit] = {i: stats.failures[keys[i]] for i, answer in enumerate(answers) if not answer}
            else:
                job.failed[unit] = stats.failures[keys[0]]
    return found, unanswered


def _key(request: SummaryRequest) -> str:
    images = [[picture.digest for picture in request.images]] if request.images else []
    return digest_of([list(request.captions), request.n_concepts, request.seed, *images])


def merge(answers: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Concepts of each group -> all distinct ones, the groups' first ones first; each with the groups it is from."""
    found: dict[str, list[int]] = {}
    for place in range(max(map(len, answers), default=0)):
        for group, concepts in enumerate(answers):
            if place < len(concepts):
                found.setdefault(concepts[place], []).append(group)
    return {concept: tuple(groups) for concept, groups in found.items()}
