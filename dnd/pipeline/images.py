"""Stage 4: synthetic images of every distinct concept, each (concept, seed) once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dnd.api import ImageRequest, derive_seed
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_images

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = pa.schema([("key", pa.string()), ("concept", pa.string()), ("seed", pa.int64()), ("image", pa.string())])


def image_stage(job: Job, concepts: Iterable[str]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """By concept, the digests of its images in the store, in the order of their seeds; and why a concept has none."""
    backend, key = job.backend("generator")
    stats = job.stats("images", key)
    table = job.table(stats, IMAGES)
    concepts = list(dict.fromkeys(concepts))
    items = {_key(request): request for concept in concepts for request in _requests(job, concept)}
    job.store.mend(table, items, "image")
    with ThreadPoolExecutor(8) as pool:

        def rows(done: Sequence[tuple[str, ImageRequest, Image]]) -> list[dict[str, Any]]:
            pictures = pool.map(job.store.put_image, [image for _, _, image in done])
            return [
                {"key": key, "concept": request.concept, "seed": request.seed, "image": picture.digest}
                for (key, request, _), picture in zip(done, pictures, strict=True)
            ]

        def generate(batch: list[ImageRequest]) -> list[Image]:
            return checked_images(backend.generate(batch), len(batch))

        digests = job.map(stats, table, items, backend, generate, rows=rows, answer=lambda row: row["image"])
    images, missing = {}, {}
    for concept in concepts:
        keys = [_key(request) for request in _requests(job, concept)]
        lost = next((key for key in keys if key not in digests), None)
        if lost is None:
            images[concept] = tuple(digests[key] for key in keys)
        else:
            missing[concept] = stats.failures[lost]
    return images, missing


def _requests(job: Job, concept: str) -> list[ImageRequest]:
    return [
        ImageRequest(concept, derive_seed(job.run.seed, "images", concept, number))
        for number in range(job.run.images.n)
    ]


def _key(request: ImageRequest) -> str:
    return f"{request.seed}:{request.concept}"
