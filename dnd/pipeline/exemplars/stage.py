"""Stage 1 as a step of a run: its key, its progress, its statistics."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dnd.api import Method, ProbingSet, Unit
from dnd.errors import UsageError
from dnd.pipeline.exemplars.find import ExemplarResult, find_exemplars
from dnd.pipeline.exemplars.spread import SpreadPass
from dnd.pipeline.job import Job
from dnd.pipeline.rates import Passed
from dnd.probing.sets import content_of
from dnd.store.keys import stage_key
from dnd.target.hooked import HookedTarget

_LOG = logging.getLogger(__name__)


def exemplar_stage(
    job: Job,
    hooked: HookedTarget,
    identity: str,
    probing: ProbingSet,
    units: Sequence[Unit],
    method: Method | None = None,
    elsewhere: SpreadPass | None = None,
) -> ExemplarResult:
    """What `method` needs of it; all that the core's own method needs, without one. `elsewhere` sees the images."""
    settings = job.run.exemplars
    if method and method.all_activations and job.shard:
        raise UsageError(
            f"{method.name} needs the activations of all images in one place: it has no shards",
            "Run it without --shard; several devices or a cluster serve it.",
        )
    if method and not method.crops:
        settings = settings.model_copy(update={"crops": False, "shortlist": 0})
    key = stage_key(
        "exemplars",
        4,
        {
            "target": identity,
            "probing": content_of(probing),
            "settings": settings.model_dump(mode="json"),
            "seed": job.run.seed,
        },
    )
    stats = job.stats("exemplars", key)
    images = job.shard.images(len(probing)) if job.shard else range(len(probing))
    with stats.running(), job.meter.stage(stats.name, len(images)) as advance, hooked:
        passed = Passed(advance)
        result = find_exemplars(
            hooked,
            probing,
            units,
            settings,
            job.store,
            key,
            seed=job.run.seed,
            batch_size=job.run.batch_size,
            progress=passed,
            workers=job.run.workers,
            pool=settings.shortlist,
            fresh=job.fresh,
            stage=job.meter.stage,
            shard=job.shard,
            all_activations=method is not None and method.all_activations,
            elsewhere=elsewhere,
        )
    stats.items, stats.computed, stats.backend_seconds = len(units), result.computed, result.target_seconds
    stats.passed = passed.items, passed.seconds
    _LOG.info(
        "exemplars: %d units, %d of them new; %d images, %d unreadable; %.1f s, in the target %.1f s",
        stats.items,
        stats.computed,
        result.n_images,
        len(result.unreadable),
        stats.seconds,
        stats.backend_seconds,
    )
    return result
