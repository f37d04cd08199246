"""Stage 3: candidate concepts of every unit, from its captions."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import pyarrow as pa

from dnd.api import JudgedConcept, Picture, SummaryRequest, Unit, derive_seed
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_concepts, counted, handed
from dnd.store.keys import digest_of

CONCEPTS = pa.schema([("key", pa.string()), ("concepts", pa.list_(pa.string()))])


def summary_request(job: Job, unit: Unit, captions: tuple[str, ...], images: tuple[Picture, ...]) -> SummaryRequest:
    """With the unit's own seed."""
    return SummaryRequest(captions, job.run.concepts.n, derive_seed(job.run.seed, "concepts", unit), images)


def concept_stage(
    job: Job,
    result: ExemplarResult,
    units: Sequence[Unit],
    captions: Mapping[Unit, tuple[str | None, ...]],
    tested: Mapping[Unit, tuple[JudgedConcept, ...]] = MappingProxyType({}),
) -> dict[Unit, tuple[str, ...]]:
    """Each unit's candidate concepts; units without an answer are marked failed, and left out.

    The summarizer reads a unit's captions or, where there are none, its exemplars; and what was `tested` before.
    """
    backend, key = job.backend("summarizer")
    stats = job.stats("concepts", key)

    def request(unit: Unit) -> SummaryRequest:
        texts = tuple(text for text in captions.get(unit, ()) if text is not None)
        images = () if texts else tuple(job.store.picture(digest) for digest, _ in result.images(unit))
        return replace(summary_request(job, unit, texts, images), tested=tested.get(unit, ()))

    def summarize(batch: list[Unit]) -> list[list[str]]:
        requests = [request(unit) for unit in batch]
        answers = counted(backend.summarize(handed(requests)), len(requests))
        return [checked_concepts(answer, one.n_concepts) for answer, one in zip(answers, requests, strict=True)]

    keys = {unit: _key(request(unit)) for unit in units}
    items: dict[str, Unit] = {}
    for unit, name in keys.items():
        items.setdefault(name, unit)
    concepts = job.map(
        stats,
        job.table(stats, CONCEPTS),
        items,
        backend,
        summarize,
        answer=lambda row: tuple(map(sys.intern, row["concepts"])),
    )
    job.mark_failed(stats, {unit: (name,) for unit, name in keys.items()})
    return {unit: concepts[name] for unit, name in keys.items() if unit not in job.failed}


def _key(request: SummaryRequest) -> str:
    images = [[picture.digest for picture in request.images]] if request.images else []
    tested = [[[one.concept, f"{one.auc:.4f}", f"{one.seen:.4f}"] for one in request.tested]] if request.tested else []
    return digest_of([list(request.captions), request.n_concepts, request.seed, *images, *tested])
