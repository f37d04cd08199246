"""One run under way: what every stage needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dnd.api import Backend, Runtime, Unit, model_names
from dnd.config.run import Run
from dnd.pipeline.map import complete
from dnd.plugin.registry import Registry
from dnd.runtime.log import log_stage
from dnd.runtime.pool import WorkerPool
from dnd.runtime.progress import Meter
from dnd.runtime.stats import StageStats
from dnd.store.images import Store
from dnd.store.keys import stage_key
from dnd.store.ledger import Ledger
from dnd.store.table import Table

SPREAD = ("captioner", "generator")
"""Kinds of which every device gets one; a summarizer uses several devices by itself."""


@dataclass
class Job:
    """A run, what it works with, and what has gone wrong so far."""

    run: Run
    registry: Registry
    store: Store
    runtime: Runtime
    meter: Meter
    digest_of_model: Callable[[str], str]
    fresh: bool = False
    all_stats: list[StageStats] = field(default_factory=list)
    failed: dict[Unit, str] = field(default_factory=dict)

    def backend(self, kind: str) -> tuple[Any, str]:
        """The chosen backend, not yet loaded, and the key of its stage."""
        choice = getattr(self.run, kind)
        entry = self.registry.find(kind, choice.name)
        made: Any = self.registry.make(kind, choice.name, choice.config, self.runtime)
        unkeyed: frozenset[str] = getattr(choice.config, "unkeyed", frozenset())
        chosen = {name: value for name, value in made.chosen().items() if name not in unkeyed}
        if chosen:  # made anew with what "auto" came to: other workers, or less free memory later, must not differ
            known = {name: value for name, value in chosen.items() if name in type(choice.config).model_fields}
            made = self.registry.make(kind, choice.name, choice.config.model_copy(update=known), self.runtime)
        settings = {**choice.config.model_dump(mode="json"), **chosen}
        parts = {
            "backend": [entry.name, entry.distribution, entry.version],
            "settings": {name: value for name, value in settings.items() if name not in unkeyed},
            "models": {name: self.digest_of_model(name) for name in model_names(choice.config)},
            "device": self.runtime.device.partition(":")[0],
        }
        return self._housed(kind, made), stage_key(kind, 1, parts)

    def _housed(self, kind: str, backend: Backend) -> Backend:
        """The backend as it is, or in worker processes where several devices or a time limit want it."""
        devices, timeout = self.run.devices if kind in SPREAD else self.run.devices[:1], self.run.general.timeout
        if len(devices) == 1 and timeout is None:
            return backend
        return WorkerPool(backend, devices, timeout)

    def table(self, stats: StageStats, schema: pa.Schema) -> Table:
        """The table of a stage's rows."""
        table = self.store.table(stats.name, stats.key, schema)
        if self.fresh:
            table.clear()
        return table

    def ledger(self) -> Ledger:
        """For what a stage asks and gets."""
        return Ledger(self.store.folder)

    def stats(self, name: str, key: str) -> StageStats:
        """A new stage's."""
        self.all_stats.append(StageStats(name, key))
        return self.all_stats[-1]

    def map(
        self, stats: StageStats, table: Table, items: Ledger, backend: Backend, work: Any, rows: Any, answer: Any
    ) -> None:
        """`complete` under a progress bar."""
        with stats.running(), self.meter.stage(stats.name, len(items)) as advance:
            complete(table, items, backend, work, rows, answer, stats, advance)
        stats.chosen, stats.used = dict(backend.chosen()), dict(backend.used())
        log_stage(stats, backend)
