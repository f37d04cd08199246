"""How fast each stage went on this machine, kept in the cache folder, so that `--dry-run` can say how long a run takes.

A rate belongs to a stage, a backend, its settings (the batch size aside) and a device. Files of benchmarks/gpu.py are
read too: a list of {"stage", "backend", "model", "device_name", "items_per_second", "load_seconds", ...}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import model_names
from dnd.errors import StoreError, UsageError
from dnd.models.weights import cache_folder
from dnd.runtime.memory import device_name
from dnd.store.files import write_atomic
from dnd.store.keys import digest_of

if TYPE_CHECKING:
    from dnd.config.run import Run
    from dnd.runtime.stats import StageStats

BACKEND_OF = {"captions": "captioner", "concepts": "summarizer", "images": "generator", "scores": "scorer"}
"""Stage -> the section of its backend; the target does the others."""
OF_THE_TARGET = ("exemplars", "crops", "activations")
_OF_BENCHMARKS = ("origin", "holds_for")
_MOST = 500
"""Rates kept; the oldest go."""
_TELLING = 4
"""A measurement on fewer than a quarter of the items of an earlier one does not replace it."""


@dataclass(frozen=True)
class Rate:
    stage: str
    backend: str
    settings: str
    """Digest of `key_of`; of a benchmark, the name of its model."""
    device: str
    """As its maker calls it."""
    items_per_second: float
    load_seconds: float
    items: int = 0
    """That it was measured on."""
    origin: str = "here"
    holds_for: Mapping[str, Any] = field(default_factory=dict)
    """Of a benchmark: settings of the backend with which alone it says something, such as the number of steps."""

    def seconds(self, items: int) -> float:
        return self.load_seconds + items / self.items_per_second


class Passed:
    """Stands before a progress callback and clocks the items that are new; the first call tells what was there."""

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


def key_of(run: Run, stage: str) -> tuple[str, str] | None:
    """(backend, digest of what the stage's speed depends on); None for a stage that this run does not have."""
    sizes = {"k": run.exemplars.k, "concepts": run.concepts.n, "images": run.images.n}
    if stage in BACKEND_OF:
        choice = run.choices().get(BACKEND_OF[stage])
        if choice is None:
            return None
        matters = {"concepts": ("k", "concepts"), "scores": ("k", "concepts", "images")}.get(stage, ())
        settings = choice.config.model_dump(mode="json", exclude={"batch_size"})
        return choice.name, digest_of([settings, {name: sizes[name] for name in matters}])
    if stage not in OF_THE_TARGET:
        return None
    parts: list[Any] = [run.target.config.model_dump(mode="json"), list(run.target.layers)]
    if stage in ("exemplars", "crops"):
        parts += [[choice.name for choice in run.probing], run.exemplars.model_dump(mode="json")]
    return run.target.name, digest_of(parts)


def devices_of(run: Run) -> str:
    """The run's devices as rates are kept by them."""
    names = [device_name(device) for device in run.devices]
    return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"


def record(run: Run, all_stats: Iterable[StageStats]) -> None:
    """Remember what a run has measured; a cache folder that cannot be written is done without."""
    device, path, new = devices_of(run), rates_path(), []
    for stats in all_stats:
        for stage, items, seconds in _measured(stats):
            key = key_of(run, stage)
            if key and items and seconds > 0:
                new.append(Rate(stage, *key, device, items / seconds, stats.load_seconds, items))
    if not new:
        return
    kept = {_identity(rate): rate for rate in read_rates(path)}
    for rate in new:
        old = kept.pop(_identity(rate), None)
        kept[_identity(rate)] = old if old and rate.items * _TELLING < old.items else rate
    latest = list(kept.values())[-_MOST:]
    rows = [{key: value for key, value in asdict(rate).items() if key not in _OF_BENCHMARKS} for rate in latest]
    with suppress(StoreError):
        write_atomic(path, (json.dumps({"version": 1, "rates": rows}, indent=1) + "\n").encode())


def _measured(stats: StageStats) -> Iterable[tuple[str, int, float]]:
    """(stage, items, seconds) of what was computed and not reused, loading left out."""
    if stats.name != "exemplars":
        return [(stats.name, stats.computed, stats.seconds - stats.load_seconds)]
    images, seconds = stats.passed
    return [("exemplars", images, seconds), ("crops", stats.computed, stats.seconds - seconds)]


def _identity(rate: Rate) -> tuple[str, str, str, str]:
    return rate.stage, rate.backend, rate.settings, rate.device


def read_rates(path: Path) -> list[Rate]:
    """What is remembered; nothing where the file is not there or not one of ours."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads(path.read_text("utf-8"))
        if found["version"] == 1:
            return [rate for row in found["rates"] if (rate := Rate(**row)).items_per_second > 0]
    return []


def read_benchmark(path: Path) -> list[Rate]:
    """Rates that a benchmark wrote; UsageError where the file is not of that form."""
    try:
        rows = json.loads(path.read_text("utf-8"))
        if not isinstance(rows, list):
            raise TypeError("not a list")
        return [_from_benchmark(row, path) for row in rows if row.get("items_per_second")]
    except OSError as error:
        raise UsageError(f"cannot read the rates in {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = "a list of objects with stage, backend, model, device_name, items_per_second and load_seconds"
        hint = "Give --rates (or $DND_RATES) a file that benchmarks/gpu.py wrote."
        raise UsageError(
            f"{path} does not hold rates ({type(error).__name__}: {error}); wanted: {what}", hint
        ) from error


def _from_benchmark(row: Mapping[str, Any], path: Path) -> Rate:
    return Rate(
        stage=str(row["stage"]),
        backend=str(row["backend"]),
        settings=str(row["model"]),
        device=str(row["device_name"]),
        items_per_second=float(row["items_per_second"]),
        load_seconds=float(row.get("load_seconds") or 0),
        origin=path.name,
        holds_for=dict(row.get("holds_for") or {}),
    )


def find_rate(run: Run, stage: str, device: str, own: Sequence[Rate], benchmarks: Sequence[Rate]) -> Rate | None:
    """What was measured here with these settings, else a benchmark of the same backend, model and device, and of the
    same settings as far as it says which matter."""
    key = key_of(run, stage)
    if key is None:
        return None
    for rate in own:
        if _identity(rate) == (stage, *key, device):
            return rate
    section = BACKEND_OF.get(stage)
    config = getattr(run, section or "target").config
    models = model_names(config)
    for rate in benchmarks:
        if (
            rate.stage in (stage, section)
            and (rate.backend, rate.device) == (key[0], device)
            and rate.settings in models
            and all(getattr(config, name, None) == value for name, value in rate.holds_for.items())
        ):
            return rate
    return None
