"""A digest of any Python value by what it holds: the same in every process, whatever the value's address."""

from __future__ import annotations

import argparse
import copyreg
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from dnd.store.source import is_installed

_DEPTH, _DEPTH_OF_PARTS = 8, 100
"""Objects within objects that are searched: hooks may lead to a whole framework. Lists and functions go deeper."""
_UNSAID = frozenset({"name_or_path", "_name_or_path", "_commit_hash"})
"""Attributes with only the place that a network was read from."""
_OF_EVERY_CLASS = frozenset(
    {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__firstlineno__", "_abc_impl"}
)
_INTERNAL = frozenset(vars(torch.nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, type(...), range, slice),
    *(Enum, PurePath, np.generic, torch.dtype, torch.device, torch.Size),
)
_NAMED = (type, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)
_PICKLING = ("__reduce__", "__reduce_ex__", "__getstate__")
_CONTAINERS = (tuple, list, set, frozenset, dict)
_LEAVES = (torch.Tensor, np.ndarray, bytearray, memoryview)
_PARTS = (*_LEAVES, *_CONTAINERS, types.FunctionType, types.MethodType, functools.partial, torch.nn.Module, type)


class Content:
    """sha256 over the values added, one after the other.

    Tensors and arrays count with every byte, containers and packed parameters with what they hold, functions with
    their code, defaults, closures and the globals they name, other objects with their class and attributes. Classes
    and functions of installed packages are known by their names, the user's own by what they are.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, tuple[int, int, object]] = {}
        """id -> order of appearance, depth, and the value, so that its id is not given away."""

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def add(self, value: object, depth: int = 0) -> None:
        if isinstance(value, _PLAIN):
            self._say(f"{type(value).__name__} {value!r}")
        elif isinstance(value, _NAMED) and not _is_own(value):
            self._say(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}")
        elif id(value) in self._seen and self._seen[id(value)][1] <= depth:
            self._say(f"again {self._seen[id(value)][0]}")
        elif depth > (_DEPTH_OF_PARTS if isinstance(value, _PARTS) else _DEPTH):
            self._say(type(value).__qualname__)
        else:
            self._seen[id(value)] = len(self._seen), depth, value
            self._add(value, depth + 1)

    def _say(self, words: str) -> None:
        self._digest.update(words.encode("utf-8", "backslashreplace") + b"\n")

    def _all(self, values: Iterable[object], depth: int) -> None:
        for value in values:
            self.add(value, depth)
        self._say(".")

    def _items(self, values: Mapping[str, object], depth: int) -> None:
        self._all((part for name in sorted(values) for part in (name, values[name])), depth)

    def _add(self, value: Any, depth: int) -> None:
        self._say(type(value).__qualname__)
        match value:
            case torch.Tensor():
                self._tensor(value, depth)
            case np.ndarray() if value.dtype != object:
                self._say(f"{value.dtype} {value.shape}")
                self._digest.update(np.ascontiguousarray(value).tobytes())
            case bytearray() | memoryview():
                self._digest.update(value)
            case np.ndarray() | tuple() | list():
                self._all(list(value), depth)
            case set() | frozenset():
                self._say(" ".join(sorted(_alone(part) for part in value)))
            case Mapping():
                self._all((part for item in value.items() for part in item), depth)
            case torch.nn.Module():
                self.module(value, depth)
            case type():
                self._class(value, depth)
            case types.FunctionType():
                self._function(value, depth)
            case types.MethodType():
                self._all((value.__func__, value.__self__), depth)
            case functools.partial():
                self._all((value.func, value.args, value.keywords), depth)
            case staticmethod() | classmethod():
                self.add(value.__func__, depth)
            case property():
                self._all((value.fget, value.fset), depth)
            case torch.ScriptObject():
                self._all(_unpacked(value), depth)
            case _:
                self._object(value, depth)

    def _object(self, value: object, depth: int) -> None:
        if _is_own(type(value)):
            self.add(type(value), depth)
        self._items(_attributes(value), depth)
        self._all(_reduced(value), depth)

    def _tensor(self, value: torch.Tensor, depth: int) -> None:
        # what is noted on it: a library's scales of quantized weights, say; torch's own notes come and go
        self._items({n: v for n, v in vars(value).items() if not n.startswith("_")}, depth)
        if value.is_nested:
            self._all(value.unbind(), depth)
            return
        self._say(f"{value.dtype} {tuple(value.shape)}")
        if value.is_meta:
            return
        if hasattr(value, "__tensor_flatten__"):  # a subclass made of other tensors: quantized weights, say
            names, context = value.__tensor_flatten__()
            self._all((context, *(getattr(value, name) for name in names)), depth)
            return
        plain = value.detach()
        if plain.is_quantized:
            self._say(repr(plain.qscheme()))
            per_channel = plain.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
            scale, zero = (
                (plain.q_per_channel_scales(), plain.q_per_channel_zero_points())
                if per_channel
                else (plain.q_scale(), plain.q_zero_point())
            )
            self._all((scale, zero), depth)
            plain = plain.int_repr()
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        flat = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        self._digest.update(flat.view(torch.uint8).numpy().data)

    def _class(self, kind: type, depth: int) -> None:
        """All of a class of the user's own, and of its bases that are."""
        for base in kind.__mro__:
            if _is_own(base):
                self._say(base.__qualname__)
                self._items({n: v for n, v in vars(base).items() if n not in _OF_EVERY_CLASS}, depth)

    def _function(self, function: types.FunctionType, depth: int) -> None:
        self._say(function.__qualname__)
        self._code(function.__code__)
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        self._all((function.__defaults__, function.__kwdefaults__, vars(function), *cells), depth)
        self._items(dict(_globals_of(function)), depth)

    def _code(self, code: types.CodeType) -> None:
        self._digest.update(code.co_code)
        self._say(" ".join(code.co_names))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._say(_alone(constant))

    def module(self, module: torch.nn.Module, depth: int = 0) -> None:
        """A network: its weights, and each part's kind, code, attributes, and hooks around its forward pass."""
        parts = dict(module.named_modules())
        self._seen |= {id(part): (len(self._seen), 0, part) for part in parts.values()}
        # state_dict leaves out buffers that are not to be saved, and has what is packed
        self._items({**module.state_dict(), **dict(module.named_parameters()), **dict(module.named_buffers())}, depth)
        for name, part in parts.items():
            kind = type(part)
            self._say(f"{name} {kind.__module__}.{kind.__qualname__}")
            if isinstance(part, torch.jit.ScriptModule):
                self._all(_scripted(part), depth)
                continue
            self._all((kind, kind.forward), depth)
            self._items({n: v for n, v in vars(part).items() if n not in _INTERNAL | _UNSAID}, depth)
            for hooks in _HOOKS:
                self._all(vars(part).get(hooks, {}).values(), depth)


def _alone(value: object) -> str:
    content = Content()
    content.add(value)
    return content.hexdigest()


def _is_own(value: object) -> bool:
    """Whether a class or a function is the user's own: of no installed package, whose version says what it does."""
    return isinstance(value, type | types.FunctionType) and not is_installed(value.__module__ or "__main__")


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*inner)


def _globals_of(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """What a function's answer hangs on beside its arguments, as far as it names it: plain values, and what is the
    user's own. It may lie in a module, as in `settings.alpha`, or have been put into one, as in `F.relu = mine`."""
    names, own = _names(function.__code__), _is_own(function)
    waiting, seen = [("", function.__globals__)], set()
    while waiting:
        where, known = waiting.pop()
        for name in names & known.keys():
            value = known[name]
            if isinstance(value, types.ModuleType):
                if id(value) not in seen:
                    seen.add(id(value))
                    waiting.append((f"{where}{name}.", vars(value)))
            elif not where or not is_installed(known.get("__name__", "")):
                if _is_plain(value) or getattr(value, "__globals__", None) is known or (own and _is_of_user(value)):
                    yield where + name, value
            elif _is_own(value):
                yield where + name, value


def _is_of_user(value: object) -> bool:
    """Of the values that a user's function names, those that are theirs: no logger, no registry of a package."""
    if isinstance(value, (*_CONTAINERS, torch.nn.Module, types.SimpleNamespace, argparse.Namespace)):
        return True
    return _is_own(value) or (not isinstance(value, type) and _is_own(type(value)))


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(part) for part in value)
    if isinstance(value, dict):
        return all(_is_plain(part) for item in value.items() for part in item)
    return isinstance(value, (*_PLAIN, torch.Tensor, np.ndarray)) and not isinstance(value, torch.nn.Module)


def _attributes(value: object) -> dict[str, object]:
    slots = {n for kind in type(value).__mro__ for n in _as_names(vars(kind).get("__slots__", ()))}
    found = {name: getattr(value, name) for name in slots if not name.startswith("__") and hasattr(value, name)}
    return {n: v for n, v in {**found, **getattr(value, "__dict__", {})}.items() if n not in _UNSAID}


def _reduced(value: object) -> Iterator[object]:
    """What an object would be pickled as, where its class says so itself: that of deques, dates, states of C."""
    kind: Any = type(value)
    reduce = copyreg.dispatch_table.get(kind)
    if reduce is None and all(getattr(kind, n, None) is getattr(object, n, None) for n in _PICKLING):
        return
    try:
        reduced = reduce(value) if reduce else value.__reduce_ex__(4)
    except Exception:  # it cannot be pickled: a lock, say
        return
    for part in reduced if isinstance(reduced, tuple) else ():
        yield list(part) if isinstance(part, Iterator) else part


def _as_names(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _scripted(part: Any) -> Iterator[object]:
    """The code of TorchScript, and the attributes that it reads."""
    if hasattr(part, "graph"):
        yield part.code
        for name in dict.fromkeys(re.findall(r'GetAttr\[name="(\w+)"\]', str(part.graph))):
            value = part._c.getattr(name)
            if not isinstance(value, torch.ScriptObject):  # a part of its own
                yield name
                yield value


def _unpacked(packed: Any) -> tuple[object, ...]:
    """What an object of C++ holds: packed weights and biases of a quantized layer."""
    for name in ("__getstate__", "unpack"):
        try:
            return (getattr(packed, name)(),)
        except (AttributeError, RuntimeError, TypeError):
            continue
    return ()
