"""Stage 2: every distinct exemplar gets a caption, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from dnd.api import Unit
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_captions

CAPTIONS = pa.schema([("key", pa.string()), ("caption", pa.string())])


def caption_stage(job: Job, result: ExemplarResult, units: Sequence[Unit]) -> Callable[[Unit], tuple[str, ...]]:
    """What gives a unit's captions, in the order of its exemplars; units that lack one are marked failed."""
    backend, key = job.backend("captioner")
    stats = job.stats("captions", key)
    items = job.ledger()
    for unit in units:
        for digest, _ in result.images(unit):
            items.add(digest, digest)

    def caption(digests: list[str]) -> list[str]:
        return checked_captions(backend.caption([job.store.picture(one).open() for one in digests]), len(digests))

    job.map(
        stats,
        job.table(stats, CAPTIONS),
        items,
        backend,
        caption,
        lambda done: [{"key": key, "caption": text} for key, _, text in done],
        lambda row: row["caption"],
    )
    for unit in units if stats.failures else ():
        lost = next((digest for digest, _ in result.images(unit) if digest in stats.failures), None)
        if lost is not None:
            job.failed[unit] = stats.failures[lost]

    def captions_of(unit: Unit) -> tuple[str, ...]:
        """Empty where one is missing."""
        found = [items.get(digest) for digest, _ in result.images(unit)]
        return () if None in found else tuple(found)

    return captions_of
