"""Stage 4: synthetic images of every distinct concept, each (concept, seed) once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dnd.api import ImageRequest, derive_seed
from dnd.pipeline.job import Job
from dnd.plugin.validate import checked_images, handed

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = pa.schema([("key", pa.string()), ("concept", pa.string()), ("seed", pa.int64()), ("image", pa.string())])


LEAST_IMAGES = 3
"""Different images of a concept without which it is not scored (or all, where the run wants fewer)."""


def image_stage(job: Job, wanted: Mapping[str, range]) -> tuple[dict[str, dict[int, str]], dict[str, str]]:
    """The images of these numbers of each concept: by concept and number, their digests in the store, without the
    numbers for which the generator has no image; and why a concept has none."""
    backend, key = job.backend("generator")
    stats = job.stats("images", key)
    table = job.table(stats, IMAGES)
    requests = {c: {number: _request(job, c, number) for number in numbers} for c, numbers in wanted.items()}
    items = {_key(request): request for own in requests.values() for request in own.values()}
    job.store.mend(table, items, "image", lambda digest: [digest] if digest else [])
    with ThreadPoolExecutor(8) as pool:

        def kept(image: Image | None) -> str | None:
            return job.store.put_image(image).digest if image else None

        def rows(done: Sequence[tuple[str, ImageRequest, Image | None]]) -> list[dict[str, Any]]:
            digests = pool.map(kept, [image for _, _, image in done])
            return [
                {"key": key, "concept": request.concept, "seed": request.seed, "image": digest}
                for (key, request, _), digest in zip(done, digests, strict=True)
            ]

        def generate(batch: list[ImageRequest]) -> list[Image | None]:
            return checked_images(backend.generate(handed(batch)), len(batch))

        digests = job.map(stats, table, items, backend, generate, rows=rows, answer=lambda row: row["image"])
    images, missing = {}, {}
    for concept, own in requests.items():
        keys = {number: _key(request) for number, request in own.items()}
        lost = next((key for key in keys.values() if key not in digests), None)
        if lost is None:
            images[concept] = {number: digest for number, key in keys.items() if (digest := digests[key])}
        else:
            missing[concept] = stats.failures[lost]
    return images, missing


def repeated(images: Sequence[str], n: int) -> tuple[str, ...]:
    """So many images, those there are again and again in their order: each weighs the same, whatever their number."""
    return tuple(images[number % len(images)] for number in range(n))


def too_few(images: Sequence[str], n: int) -> str:
    """Why a concept of which there are these images, where n are wanted, cannot be scored, or ""."""
    count = len(set(images))
    if count >= min(LEAST_IMAGES, n):
        return ""
    return f"only {count} image{' shows' if count == 1 else 's show'} it"


def _request(job: Job, concept: str, number: int) -> ImageRequest:
    return ImageRequest(concept, derive_seed(job.run.seed, "images", concept, number), number)


def _key(request: ImageRequest) -> str:
    return f"{request.seed}:{request.concept}"
