"""Stage 4: synthetic images of every distinct concept, each (concept, seed) once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dnd.api import ImageRequest, derive_seed
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_images
from dnd.store.ledger import Ledger

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = pa.schema([("key", pa.string()), ("concept", pa.string()), ("seed", pa.int64()), ("image", pa.string())])


def image_stage(job: Job, concepts: Iterable[str]) -> tuple[Ledger, dict[str, str]]:
    """By concept, the digests of its images in the store, in the order of their seeds; and why concepts lack some."""
    backend, key = job.backend("generator")
    stats = job.stats("images", key)
    table = job.table(stats, IMAGES)
    items, drawn = job.ledger(), job.ledger()
    for concept in concepts:
        if drawn.add(concept):
            for request in _requests(job, concept):
                items.add(_key(request), request)
    job.store.mend(table, items, ["image"])
    with ThreadPoolExecutor(8) as pool:

        def rows(done: Sequence[tuple[str, ImageRequest, Image]]) -> list[dict[str, Any]]:
            pictures = pool.map(job.store.put_image, [image for _, _, image in done])
            return [
                {"key": key, "concept": request.concept, "seed": request.seed, "image": picture.digest}
                for (key, request, _), picture in zip(done, pictures, strict=True)
            ]

        def generate(batch: list[ImageRequest]) -> list[Image]:
            return checked_images(backend.generate(batch), len(batch))

        job.map(stats, table, items, backend, generate, rows, lambda row: row["image"])
    lacking = {}
    for concept in drawn:
        keys = [_key(request) for request in _requests(job, concept)]
        digests = [items.get(key) for key in keys]
        if None in digests:
            lacking[concept] = stats.failures[keys[digests.index(None)]]
        else:
            drawn.settle(concept, digests)
    return drawn, lacking


def _requests(job: Job, concept: str) -> list[ImageRequest]:
    return [
        ImageRequest(concept, derive_seed(job.run.seed, "images", concept, number))
        for number in range(job.run.images.n)
    ]


def _key(request: ImageRequest) -> str:
    return f"{request.seed}:{request.concept}"
