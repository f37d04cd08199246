"""Stage 4: synthetic images of every distinct concept, each (concept, seed) once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dnd.api import ImageRequest, derive_seed
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_images

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = pa.schema([("key", pa.string()), ("concept", pa.string()), ("seed", pa.int64()), ("image", pa.string())])


def image_stage(job: Job, wanted: Mapping[str, range]) -> tuple[dict[str, dict[int, str]], dict[str, str]]:
    """The images of these numbers of each concept: by concept and number, their digests in the store; and why a concept
    has none."""
    backend, key = job.backend("generator")
    stats = job.stats("images", key)
    table = job.table(stats, IMAGES)
    requests = {c: {number: _request(job, c, number) for number in numbers} for c, numbers in wanted.items()}
    items = {_key(request): request for own in requests.values() for request in own.values()}
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
    for concept, own in requests.items():
        keys = {number: _key(request) for number, request in own.items()}
        lost = next((key for key in keys.values() if key not in digests), None)
        if lost is None:
            images[concept] = {number: digests[key] for number, key in keys.items()}
        else:
            missing[concept] = stats.failures[lost]
    return images, missing


def _request(job: Job, concept: str, number: int) -> ImageRequest:
    return ImageRequest(concept, derive_seed(job.run.seed, "images", concept, number))


def _key(request: ImageRequest) -> str:
    return f"{request.seed}:{request.concept}"
