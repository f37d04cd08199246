"""What a stage did: items requested and computed, failures, seconds, peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dnd.errors import DamagedError
from dnd.runtime.memory import Peak


class Failures(dict[str, str]):
    """Key of an item -> why it has no answer."""

    def __missing__(self, key: str) -> str:
        """Neither an answer nor a reason: its row was there, and then it was not."""
        raise DamagedError(f"what was stored of {key!r} is gone", "Give the same command again: the rest is kept.")


@dataclass
class StageStats:
    """What a stage computed and what it cost; goes into run.json."""

    name: str
    key: str = ""
    items: int = 0
    computed: int = 0
    """Items not found in the store."""
    seconds: float = 0.0
    backend_seconds: float = 0.0
    """Of those, inside the backend or the target, loading included."""
    load_seconds: float = 0.0
    """Of those, loading it."""
    passed: tuple[int, float] = (0, 0.0)
    """Of the probing pass: images that it took through the target, and its seconds."""
    failures: Failures = field(default_factory=Failures)
    chosen: dict[str, Any] = field(default_factory=dict)
    """What the backend's automatic settings came to."""
    used: dict[str, int] = field(default_factory=dict)
    """What the backend reports as used up."""
    peak: int = 0
    """Bytes of main memory in use at most while it ran."""
    device_peak: int = 0
    """The same of the fullest GPU."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count this block as the stage's time."""
        began, peak = time.perf_counter(), Peak()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began
            self.peak, self.device_peak = max(self.peak, peak.bytes()), max(self.device_peak, peak.device_bytes())

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count this block as the backend's time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.backend_seconds += time.perf_counter() - began
