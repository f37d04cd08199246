"""How fast each stage went on this machine, kept in the cache folder, so that `--dry-run` can estimate a run's time.

A rate belongs to a stage, a backend, its settings (the batch size aside) and a device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.errors import StoreError
from dnd.files import read_text
from dnd.runtime.memory import device_name
from dnd.store.files import write_atomic
from dnd.store.folders import cache_folder
from dnd.store.keys import digest_of

if TYPE_CHECKING:
    from dnd.config.run import Run
    from dnd.runtime.stats import StageStats

BACKEND_OF = {
    "captions": "captioner",
    "concepts": "summarizer",
    "images": "generator",
    "scores": "scorer",
    "verify": "generator",
}
"""Stage -> the section of its backend; the target does the others."""
_OF_THE_TARGET = ("exemplars", "crops", "activations")
_MOST = 500
"""Rates kept; the oldest go."""
_TELLING = 4
"""A measurement on fewer than a quarter of the items of an earlier one does not replace it."""


@dataclass(frozen=True)
class Rate:
    items_per_second: float
    load_seconds: float
    items: int
    """Number of items that it was measured on."""

    def seconds(self, items: int) -> float:
        return self.load_seconds + items / self.items_per_second


class Passed:
    """Wraps a progress callback and times the new items; the first call counts the items that were in the store."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._began: float | None = None
        self.items, self.seconds = 0, 0.0

    def __call__(self, items: int) -> None:
        now = time.perf_counter()
        if self._began is None:
            self._began = now
        else:
            self.items, self.seconds = self.items + items, now - self._began
        self._advance(items)


def rates_path() -> Path:
    return cache_folder() / "rates.json"


def key_of(run: Run, stage: str) -> str | None:
    """Digest of what the stage's speed depends on; None for a stage that this run does not have."""
    stage = "images" if stage == "verify" else stage  # nearly all of its time
    sizes = {"k": run.exemplars.k, "concepts": run.concepts.n, "images": run.images.n}
    choice = run.choices().get(BACKEND_OF.get(stage, "target"))
    if choice is None or (stage not in BACKEND_OF and stage not in _OF_THE_TARGET):
        return None
    parts: list[Any] = [stage, choice.name, choice.config.model_dump(mode="json", exclude={"batch_size"})]
    parts += [sizes[name] for name in {"concepts": ("k", "concepts"), "scores": tuple(sizes)}.get(stage, ())]
    if stage in _OF_THE_TARGET:
        parts.append(list(run.target.layers))
    if stage in ("exemplars", "crops"):
        parts += [[choice.name for choice in run.probing], run.exemplars.model_dump(mode="json")]
    return digest_of([*parts, [device_name(device) for device in run.devices]])


def record(run: Run, all_stats: Iterable[StageStats]) -> None:
    """Remember what a run has measured; a cache folder that cannot be written is done without."""
    path = rates_path()
    kept, before = read_rates(path), read_rates(path)
    for stats in all_stats:
        for stage, items, seconds in _measured(stats):
            key = key_of(run, stage)
            if key and items and seconds > 0:
                old, new = kept.pop(key, None), Rate(items / seconds, stats.load_seconds, items)
                kept[key] = old if old and items * _TELLING < old.items else new
    rows = {key: asdict(rate) for key, rate in list(kept.items())[-_MOST:]}
    with suppress(StoreError):
        if kept != before:
            write_atomic(path, (json.dumps({"version": 2, "rates": rows}, indent=1) + "\n").encode())


def _measured(stats: StageStats) -> Iterable[tuple[str, int, float]]:
    """(stage, items, seconds) of what was computed and not reused, loading left out."""
    if stats.name != "exemplars":
        return [(stats.name, stats.computed, stats.seconds - stats.load_seconds)]
    images, seconds = stats.passed
    return [("exemplars", images, seconds), ("crops", stats.computed, stats.seconds - seconds)]


def read_rates(path: Path) -> dict[str, Rate]:
    """What is remembered, by key; nothing where the file is not there or not one of ours."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(read_text(path))
        if found["version"] == 2:
            rates = {key: Rate(**row) for key, row in found["rates"].items()}
            return {key: rate for key, rate in rates.items() if rate.items_per_second > 0}
    return {}


def find_rate(run: Run, stage: str, rates: Mapping[str, Rate]) -> Rate | None:
    """What was measured with these settings on these devices; UsageError where there is no such device."""
    key = key_of(run, stage)
    return rates.get(key) if key else None
