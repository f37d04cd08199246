"""One run under way: what every stage needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pyarrow as pa

from dnd.api import Backend, Plugin, Unit, model_folders, model_names, probing_folders
from dnd.config.run import Choice, Run
from dnd.errors import ModelError
from dnd.models.weights import Weights
from dnd.pipeline.build import Builder
from dnd.pipeline.exemplars.shard import Shard
from dnd.pipeline.map import Ahead, Rows, complete, leave
from dnd.probing.sets import FolderSet
from dnd.runtime.cluster import Cluster
from dnd.runtime.cores import over_cores
from dnd.runtime.ends import Ends
from dnd.runtime.log import log_stage
from dnd.runtime.memory import Need, estimate, free_memory
from dnd.runtime.pool import WorkerPool
from dnd.runtime.progress import Meter
from dnd.runtime.spread import Spread
from dnd.runtime.stats import StageStats
from dnd.store.digests import folder_digest
from dnd.store.folders import digests_path
from dnd.store.images import Store
from dnd.store.keys import stage_key
from dnd.store.source import source_digest
from dnd.store.table import Table

T = TypeVar("T")
R = TypeVar("R")

SPREAD = ("captioner", "generator")
"""Kinds of which every device gets one; a summarizer uses several devices by itself."""
SMALL = 256 << 20
"""Bytes of weights. Larger models use the threads of a CPU well, and several of them its memory badly."""


class _Kept:
    """Loads a backend once, and leaves it loaded."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.name, self.runtime, self.loaded = backend, backend.name, backend.runtime, False

    def __enter__(self) -> None:
        if not self.loaded:
            self.backend.__enter__()
            self.loaded = True

    def __exit__(self, *exc: object) -> None:
        """Nothing: `Job.keeping` closes it."""


def _small(backend: Backend) -> Need | None:
    """What a backend needs on a CPU; None where that is much, or not known."""
    need = None
    with suppress(ModelError):  # of unknown size
        need = estimate(backend.config, Weights.default(), "cpu")
    return need if need and need.weights <= SMALL else None


@dataclass
class Job:
    """A run, what it works with, and what has gone wrong so far."""

    run: Run
    builder: Builder
    store: Store
    meter: Meter
    digest_of_model: Callable[[str], str]
    fresh: bool = False
    all_stats: list[StageStats] = field(default_factory=list)
    cluster: Cluster | None = None
    """Where the backends work, if not here."""
    shard: Shard | None = None
    """Which share of the run this is, if not all."""
    ends: Ends | None = None
    """What gives workers their processes."""
    failed: dict[Unit, str] = field(default_factory=dict)

    _backends: dict[str, tuple[Any, str]] = field(default_factory=dict, init=False)
    _tables: dict[str, Table] = field(default_factory=dict, init=False)
    _kept: dict[str, _Kept] = field(default_factory=dict, init=False)

    def backend(self, kind: str) -> tuple[Any, str]:
        """The chosen backend, not yet loaded, and the key of its stage."""
        if kind not in self._backends:
            self._backends[kind] = self._backend(kind)
        return self._backends[kind]

    def _backend(self, kind: str) -> tuple[Any, str]:
        choice: Choice = getattr(self.run, kind)
        entry = self.builder.registry.find(kind, choice.name)
        made = self.builder.plugin(choice)
        unkeyed: frozenset[str] = getattr(choice.config, "unkeyed", frozenset())
        chosen = {name: value for name, value in made.chosen().items() if name not in unkeyed}
        if chosen:  # made anew with what "auto" came to: other workers, or less free memory later, must not differ
            known = {name: value for name, value in chosen.items() if name in type(choice.config).model_fields}
            made = self.builder.plugin(replace(choice, config=choice.config.model_copy(update=known)))
        settings = {**choice.config.model_dump(mode="json"), **chosen}
        parts = {
            "backend": [entry.name, entry.distribution, entry.version],
            "content": self.content(made),
            "settings": {name: value for name, value in settings.items() if name not in unkeyed},
            "models": {name: self.digest_of_model(name) for name in model_names(choice.config)},
            "device": self.builder.runtime.device.partition(":")[0],
        }
        return self._housed(kind, made), stage_key(kind, 1, parts)

    def content(self, plugin: Plugin) -> dict[str, str]:
        """Digests of what a plugin's answers depend on besides its version, settings and models: code and folders."""
        folders = {name: folder_digest(path, digests_path()) for name, path in model_folders(plugin.config).items()}
        for name in probing_folders(type(plugin.config)):
            if path := getattr(plugin.config, name):
                folders[name] = FolderSet(path, self.store.digests).digest()
        return {"code": source_digest(type(plugin)), **folders}

    def _housed(self, kind: str, backend: Backend) -> Backend:
        """The backend as it is; in worker processes where several devices or a time limit want it; or on a cluster.

        A small scorer works here, beside the cluster: it could not stay there between the rounds of images.
        """
        timeout = self.run.general.timeout
        if self.cluster:
            if kind == "scorer" and timeout is None and self.is_small(backend):
                return backend
            return WorkerPool(backend, self.cluster.workers(), timeout, self.ends)
        devices = self.run.devices if kind in SPREAD else self.run.devices[:1]
        if len(devices) == 1 and timeout is None:
            copies = self._copies(backend)
            return Spread(backend, copies, self.ends, workers=kind != "scorer") if copies > 1 else backend
        return WorkerPool(backend, devices, timeout, self.ends)

    def _copies(self, backend: Backend) -> int:
        """How many of a backend a CPU runs at a time, where the device is for us to choose.

        Of a scorer it is one, which remembers the images that units share: each of several would see them anew.
        """
        if self.run.general.device != "auto" or self.run.devices != ("cpu",) or not backend.spreads:
            return 1
        if (need := _small(backend)) is None:
            return 1
        return min(len(over_cores(self.run.devices)), free_memory("cpu")[0] // (2 * need.total))

    def is_small(self, backend: Backend) -> bool:
        """Whether it runs on CPUs and is known to need little of their memory, beside others."""
        return self.builder.runtime.device == "cpu" and _small(backend) is not None

    def table(self, stats: StageStats, schema: pa.Schema) -> Table:
        """The table of a stage's rows."""
        if stats.key not in self._tables:
            self._tables[stats.key] = self.store.table(stats.name, stats.key, schema)
            if self.fresh:
                self._tables[stats.key].clear()
        return self._tables[stats.key]

    def stats(self, name: str, key: str) -> StageStats:
        """A stage's, which goes on counting where the stage runs in rounds."""
        for stats in self.all_stats:
            if (stats.name, stats.key) == (name, key):
                return stats
        self.all_stats.append(StageStats(name, key))
        return self.all_stats[-1]

    @contextmanager
    def keeping(self, kind: str) -> Iterator[None]:
        """Inside, the backend stays loaded from its first use to the end, however often it is used; not where its
        workers would take the room on a cluster of those that work in between."""
        if self.cluster and isinstance(self.backend("scorer")[0], WorkerPool):
            yield
            return
        kept = self._kept[kind] = _Kept(self.backend(kind)[0])
        try:
            yield
        finally:
            del self._kept[kind]
            if kept.loaded:
                leave(kept.backend)

    @contextmanager
    def lending(self, kind: str, to: str) -> Iterator[None]:
        """Inside, a backend stays loaded where the one of the next stage works with what it has loaded."""
        if self.backend(to)[0].borrow(self.backend(kind)[0]):
            with self.keeping(kind):
                yield
        else:
            yield

    def map(
        self,
        stats: StageStats,
        table: Table,
        items: Mapping[str, T],
        holder: AbstractContextManager[object],
        work: Callable[[list[Any]], Sequence[R]],
        *,
        rows: Callable[[Sequence[tuple[str, T, R]]], Rows] | None = None,
        answer: Callable[[dict[str, Any]], Any] | None = None,
        batch_size: Callable[[], int] | None = None,
        ahead: Callable[[T], object] | None = None,
    ) -> dict[str, Any]:
        """`complete` under a progress bar: by key, what `answer` makes of each row. `rows` makes the rows; without it,
        the output is the table's second column, and the answer too. `batch_size` may be left out for a Backend.
        `ahead` makes what `work` gets of each item, by `run.workers` threads while the batch before is at work."""
        column = table.schema.names[1]
        backend = holder if isinstance(holder, Backend) else None
        if batch_size is None:
            assert backend is not None, "only a backend has a batch_size"
            batch_size = lambda: backend.batch_size  # noqa: E731
        with stats.running(), self.meter.stage(stats.name, len(items)) as show:
            if isinstance(backend, Spread):
                backend.left = len(items)

            def advance(n: int) -> None:
                if isinstance(backend, Spread):
                    backend.left -= n
                show(n)

            found = complete(
                table,
                items,
                next((kept for kept in self._kept.values() if kept.backend is holder), holder),
                work,
                rows or (lambda done: [{"key": key, column: output} for key, _, output in done]),
                answer or (lambda row: row[column]),
                stats,
                advance,
                batch_size=batch_size,
                ahead=Ahead(ahead, self.run.workers) if ahead else None,
            )
        if backend is not None:
            stats.chosen, stats.used = dict(backend.chosen()), dict(backend.used())
        log_stage(stats, holder)
        return found

    def mark_failed(self, stats: StageStats, needs: Mapping[Unit, Iterable[str]]) -> None:
        """Units one of whose items failed in a stage, with its reason."""
        for unit, keys in needs.items() if stats.failures else ():
            lost = next((key for key in keys if key in stats.failures), None)
            if lost is not None:
                self.failed[unit] = stats.failures[lost]
