"""What `dnd doctor` looks at: each check on its own, none of them stopped by what another finds.

A check is a generator of `Check` that takes a `Context`. What one of them learns (how many units, how many images)
it writes into the context for those after it, which do without where it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

from dnd.api import Runtime
from dnd.config.run import BACKENDS, Choice, Run
from dnd.errors import DndError, UsageError
from dnd.models.weights import Weights
from dnd.pipeline.build import Builder
from dnd.plugin.registry import Registry

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    id: str
    """The same in every version and for every outcome: "memory.captioner"."""
    state: State
    """A fault keeps the run from working, a warning may."""
    detail: str
    remedy: str = ""
    """What to do, a command where there is one."""

    @classmethod
    def of(cls, name: str, error: DndError) -> Check:
        """What would stop the run, as the run would say it."""
        return cls(name, "fault", str(error), error.hint or "Mend what is named here, then ask `dnd doctor` again.")


@dataclass
class Context:
    """The run in question, and what has been learnt of it."""

    run: Run
    """Of a run file with mistakes, `target`, `captioner`, `summarizer`, `generator` or `scorer` may be None."""
    registry: Registry
    weights: Weights
    out: Path
    store: Path
    whole: bool = True
    """The run file has no mistakes."""
    fresh: bool = False
    quick: bool = False
    """Hash no file."""
    images: int | None = None
    """In the probing sets."""
    pixels: float | None = None
    """Of a probing image, the mean of a few."""
    units: int | None = None
    width: int | None = None
    """Units of the hooked layers, asked for or not."""
    target_bytes: int | None = None
    bad_models: set[str] = field(default_factory=set)

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Where the run would go; the CPU where what was asked for is not here."""
        try:
            return self.run.devices
        except UsageError:
            return ("cpu",)

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.devices[0], self.weights.resolve, self.devices)

    @cached_property
    def builder(self) -> Builder:
        """Makes each plugin once."""
        return Builder(self.registry, self.runtime)

    def choices(self) -> dict[str, Choice]:
        """Sections that could be read."""
        found = cast("Mapping[str, Choice | None]", self.run.choices())
        return {section: choice for section, choice in found.items() if choice is not None}

    def helpers(self) -> dict[str, Choice]:
        """Backends and method, where that is a plugin: what works on the target and the images, and may hold models."""
        return {section: choice for section, choice in self.choices().items() if section in (*BACKENDS, "method")}


Look = Callable[[Context], Iterator[Check]]


def gigabytes(size: float) -> str:
    """Bytes for people: "6.9 GB", "16 MB"."""
    if size >= 9.95e9:
        return f"{size / 1e9:,.0f} GB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size, 0) / 1e6:.0f} MB"
