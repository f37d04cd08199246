"""Stage 2: every distinct exemplar gets a caption, once."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from PIL.Image import Image

from dnd.api import Unit
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_captions, handed

CAPTIONS = pa.schema([("key", pa.string()), ("caption", pa.string())])


LEAST_CAPTIONS = 2
"""A unit goes on without the captions that failed, down to this number (or all, where it has fewer exemplars)."""


def caption_stage(job: Job, result: ExemplarResult, units: Sequence[Unit]) -> dict[Unit, tuple[str | None, ...]]:
    """Each unit's captions, in the order of its exemplars, None for one that failed; units with too few captions are
    marked failed, and left out."""
    backend, key = job.backend("captioner")
    stats = job.stats("captions", key)
    images = {unit: [digest for digest, _ in result.images(unit)] for unit in units}
    items = {digest: digest for digests in images.values() for digest in digests}

    def opened(digest: str) -> Image:
        return job.store.picture(digest).open()

    def caption(images: list[Image]) -> list[str]:
        return checked_captions(backend.caption(handed(images)), len(images))

    captions = job.map(stats, job.table(stats, CAPTIONS), items, backend, caption, ahead=opened)
    short = {
        unit: [digest for digest in digests if digest in stats.failures]
        for unit, digests in images.items()
        if sum(digest in captions for digest in digests) < min(LEAST_CAPTIONS, len(digests))
    }
    job.mark_failed(stats, short)
    return {
        unit: tuple(captions.get(digest) for digest in digests)
        for unit, digests in images.items()
        if unit not in job.failed
    }
