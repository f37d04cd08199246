"""What an instance holds in memory."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any

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
    """The value and all below it, each once; classes, functions and modules are nobody's own."""
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
