"""What a plugin must leave alone: the folder it is run from, the global random numbers. The network is hooked by
`dnd.offline.block`."""

from __future__ import annotations

import os
import random
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dnd.errors import OfflineError
from dnd.offline.block import offline
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


_PLAIN = (str, bytes, bytearray, int, float, complex, bool, type(None))


_CONTAINERS = (list, tuple, set, frozenset)


def held(thing: object) -> tuple[int, dict[str, weakref.ref[Any]]]:
    """Bytes reachable from an instance through attributes and containers, and its arrays, tensors and torch modules
    by the attribute they hang on."""
    total, seen = 0, set[int]()
    heavy: dict[str, weakref.ref[Any]] = {}
    for name, value in vars(thing).items():
        for part in _parts(value, seen):
            total += _size(part)
            if _is_heavy(part):
                heavy.setdefault(name, weakref.ref(part))
    return total, heavy


def _parts(value: object, seen: set[int]) -> Iterator[object]:
    """The value and all below it, each once; classes, functions and modules are left out."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type):
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, _PLAIN) or type(one).__name__ in ("module", "function", "builtin_function_or_method"):
            continue
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, _CONTAINERS):
            waiting += one
        else:
            waiting += [getattr(one, "__dict__", {})]


def _is_torch(value: object, name: str) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor if name == "Tensor" else torch.nn.Module)


def _is_heavy(value: object) -> bool:
    return type(value).__name__ == "ndarray" or _is_torch(value, "Tensor") or _is_torch(value, "Module")


def _size(value: object) -> int:
    if type(value).__name__ == "ndarray" or _is_torch(value, "Tensor"):
        return int(getattr(value, "nbytes", 0))
    return sys.getsizeof(value)
