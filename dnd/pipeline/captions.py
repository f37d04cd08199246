"""Stage 2: every distinct exemplar gets a caption, once."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from dnd.api import Unit
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_captions

CAPTIONS = pa.schema([("key", pa.string()), ("caption", pa.string())])


def caption_stage(job: Job, result: ExemplarResult, units: Sequence[Unit]) -> dict[Unit, tuple[str, ...]]:
    """Each unit's captions, in the order of its exemplars; units that lack one are marked failed, and left out."""
    backend, key = job.backend("captioner")
    stats = job.stats("captions", key)
    images = {unit: [digest for digest, _ in result.images(unit)] for unit in units}
    items = {digest: digest for digests in images.values() for digest in digests}

    def caption(digests: list[str]) -> list[str]:
        return checked_captions(backend.caption([job.store.picture(one).open() for one in digests]), len(digests))

    captions = job.map(stats, job.table(stats, CAPTIONS), items, backend, caption)
    job.mark_failed(stats, images)
    return {
        unit: tuple(captions[digest] for digest in digests)
        for unit, digests in images.items()
        if unit not in job.failed
    }
