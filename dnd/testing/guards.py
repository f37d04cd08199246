"""What a plugin must leave alone: the folder it is run from, everybody's random numbers. (dnd.offline: the network.)"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dnd.errors import OfflineError
from dnd.offline import offline
from dnd.testing.contract import BrokenRule


@contextmanager
def no_network() -> Iterator[None]:
    """BrokenRule where this process or a child asks for more than loopback, whatever becomes of the refusal."""
    try:
        with offline():
            yield
    except OfflineError as error:
        raise BrokenRule(str(error)) from error


def folder_state(folder: Path) -> dict[str, int]:
    """Each entry's name and time of change; what Python compiles beside a module does not count."""
    entries = [entry for entry in os.scandir(folder) if entry.name != "__pycache__"]
    return {entry.name: entry.stat(follow_symlinks=False).st_mtime_ns for entry in entries}


def chance_state() -> dict[str, object]:
    """The state of every global source of random numbers, comparable; torch's only where it is imported."""
    numpy_state: Any = np.random.get_state()
    found: dict[str, object] = {"random": random.getstate(), "numpy": (numpy_state[1].tobytes(), numpy_state[2])}
    if torch := sys.modules.get("torch"):
        found["torch"] = torch.get_rng_state().numpy().tobytes()
    return found


@contextmanager
def chance_seeded(seed: int) -> Iterator[None]:
    """Sets every global source, and puts back what was there."""
    before: tuple[Any, Any] = random.getstate(), np.random.get_state()
    torch: Any = sys.modules.get("torch")
    torch_before = torch.get_rng_state() if torch else None
    random.seed(seed)
    np.random.seed(seed)
    if torch:
        torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if torch:
            torch.set_rng_state(torch_before)
