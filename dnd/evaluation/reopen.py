"""A finished run opened again: its target, its probing set and its store."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dnd.api import Grading, Label, Picture, ProbingSet, Runtime, derive_seed
from dnd.config.read import build_run, read_run
from dnd.config.run import BACKENDS, Choice, Run
from dnd.config.tables import read_tables
from dnd.errors import DndError, UsageError
from dnd.models.weights import Weights
from dnd.pipeline.activations import activations_on
from dnd.pipeline.build import Builder, hook, identify
from dnd.pipeline.job import Job
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder
from dnd.runtime.progress import Meter
from dnd.store.folders import results_folder
from dnd.store.images import Store
from dnd.store.keys import stage_key
from dnd.target.hooked import HookedTarget

_LOG = logging.getLogger(__name__)

VECTORS = pa.schema([("key", pa.string()), ("values", pa.binary())])
_SAMPLE = pa.schema([("key", pa.string()), ("image", pa.string())])


@dataclass(frozen=True)
class Seen:
    """The images that a run has chosen its labels on."""

    sample: frozenset[int]
    """Indices in the probing set."""
    sources: frozenset[str]
    """Names of the exemplars' probing images."""
    probed: frozenset[str]
    """Digests of sample and exemplars, whose crops are images of their own."""
    drawn: frozenset[str]
    """Digests of its synthetic images."""


@dataclass(frozen=True)
class Opened:
    """A run folder's target and probing set, and a job that generates with fresh seeds and shares the run's store."""

    folder: Path
    job: Job
    hooked: HookedTarget
    identity: str
    probing: ProbingSet
    images_of_the_run: int = 0
    """Synthetic images per candidate that the run itself wanted."""

    def seen(self) -> Seen:
        """What the run has looked at."""
        run = RunFolder(self.folder)
        rows: list[dict[str, Any]] = []
        match run.facts:
            case {"stages": {"exemplars": {"key": str(key)}}} if re.fullmatch("[0-9a-f]{64}", key):
                rows = list(self.job.store.table("sample", key, _SAMPLE).rows())
        names, probed, drawn = set(), {row["image"] for row in rows}, set()
        for record in run.records():
            names |= {one.source for one in record.exemplars}
            probed |= {one.digest for one in record.exemplars}
            drawn |= {one.digest for candidate in record.candidates for one in candidate.images}
        return Seen(frozenset(int(row["key"]) for row in rows), frozenset(names), frozenset(probed), frozenset(drawn))

    def activations(self, pictures: Sequence[Picture]) -> dict[str, npt.NDArray[np.float32]]:
        """{layer: (n_pictures, units)}, each distinct image computed once and kept in the store."""
        hooked = self.hooked
        parts = {"target": self.identity, "layers": list(hooked.layers), "pooling": hooked.pooling}

        def run(batch: Sequence[Picture]) -> list[bytes]:
            return activations_on(hooked, batch)

        found = self.vectors("evaluation-activations", parts, pictures, hooked, run, lambda: hooked.batch_size)
        sizes = hooked.layer_sizes()
        ends = np.cumsum(list(sizes.values()))
        return dict(zip(sizes, np.split(found, ends[:-1], axis=1), strict=True))

    def vectors(
        self,
        stage: str,
        parts: Mapping[str, Any],
        pictures: Sequence[Picture],
        holder: AbstractContextManager[object],
        run: Callable[[Sequence[Picture]], Sequence[bytes]],
        batch_size: Callable[[], int],
    ) -> npt.NDArray[np.float32]:
        """One vector per picture, (n, d), from the store or from `run`, whose bytes are float32; `parts` are what
        they depend on, `holder` is entered around the work."""
        stats = self.job.stats(stage, stage_key(stage, 1, parts))
        table = self.job.table(stats, VECTORS)
        items = {picture.digest: picture for picture in pictures}
        known = self.job.map(
            stats,
            table,
            items,
            holder,
            run,
            answer=lambda row: np.frombuffer(row["values"], "<f4"),
            batch_size=batch_size,
        )
        if stats.failures:
            raise DndError(f"{len(stats.failures)} images have no answer: {next(iter(stats.failures.values()))}")
        return np.stack([known[picture.digest] for picture in pictures])


def grader(folder: Path) -> Callable[[Sequence[Label]], Grading | None] | None:
    """What judges labels of a finished run's target where the meaning of its units is known; None for a target that
    is not a plugin's."""
    registry = Registry.load()
    run = read_run(folder / "run.toml", registry)
    runtime = Runtime("cpu", Weights.default().resolve)
    target = Builder(registry, runtime).target(run.target)
    return target.grade if target else None


def open_run(
    folder: Path, *, images: int, meter: Meter, generator: str | None = None, device: str | None = None
) -> Opened:
    """Build what a finished run names; `images` are generated per label, by the run's generator or that of a run file.

    Raises UsageError where the run cannot be opened: a live module is gone, no generator, folders moved.
    """
    if not (folder / "run.toml").is_file():
        raise UsageError(f"{folder} holds no run.toml", "Name a finished run's folder, or leave out --images.")
    registry = Registry.load()
    options = {"device": device} if device else {}
    try:
        run = read_run(folder / "run.toml", registry, options=options)
    except DndError as error:
        raise UsageError(
            f"the run in {folder} cannot be opened again: {error}",
            "Without --images nothing needs its target and probing set.",
        ) from error
    if generator is not None:
        run = replace(run, generator=_generator(generator, run, registry))
    if all((entry.kind, entry.name) != ("generator", run.generator.name) for entry in registry.entries):
        raise UsageError(
            f"the run in {folder} has no generator to draw images of its labels with",
            "Name a run file whose generator is to draw them (--generator default), or leave out --images.",
        )
    weights = Weights.default()
    builder = Builder(registry, Runtime(run.device, weights.resolve, run.devices))
    store = Store(results_folder(folder))
    module, preprocess = builder.module(run.target)
    hooked = hook(run, module, preprocess, run.device)
    with hooked:
        pass  # it knows its readings now; its own hooks are no part of the network
    identity = identify(builder.target(run.target), module, preprocess, hooked.readings)
    if RunFolder(folder).facts.get("target", identity) != identity:
        _LOG.warning(
            "the target %s is not the one that the run in %s has labelled, or is read in another way by now: its code,"
            " weights or libraries have changed",
            run.target.name,
            folder,
        )
    # Another seed than the run's: no image that chose a label judges it.
    fresh = run.general.model_copy(update={"seed": derive_seed(run.seed, "evaluation")})
    drawing = replace(run, general=fresh, images=run.images.model_copy(update={"n": images}))
    job = Job(drawing, builder, store, meter, weights.digest)
    probing = builder.probing(run.probing, store.digests)
    return Opened(folder, job, hooked, identity, probing, run.images.n)


def _generator(runfile: str, run: Run, registry: Registry) -> Choice:
    """The generator of a run file, for a run that has none or another."""
    backends = {section: read_tables(runfile).get(section, {}) for section in BACKENDS}
    tables = {key: table for key, table in run.to_dict().items() if key not in ("method", "labels")}
    return build_run({**tables, **backends}, registry).generator
