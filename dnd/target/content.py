"""A digest of any Python value by what it holds: the same in every process, whatever the value's address."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

_DEPTH = 8
"""Objects within objects that are searched: hooks may lead to a whole framework."""
_UNSAID = frozenset({"name_or_path", "_name_or_path", "_commit_hash"})
"""Attributes with only the place that a network was read from."""
_INTERNAL = frozenset(vars(torch.nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")

_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, type(...), range, slice),
    *(Enum, PurePath, np.generic, torch.dtype, torch.Size),
)
_NAMED = (type, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)


class Content:
    """sha256 over the values added, one after the other.

    Tensors and arrays count with every byte, containers and packed parameters with what they hold, functions with
    their code, defaults, closures and the plain globals they name, other objects with their class and attributes.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._seen: dict[int, tuple[int, object]] = {}
        """id -> order of appearance, and the value, so that its id is not given away."""

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def add(self, value: object, depth: int = 0) -> None:
        if isinstance(value, _PLAIN):
            self._say(f"{type(value).__name__} {value!r}")
        elif isinstance(value, _NAMED):
            self._say(f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}")
        elif id(value) in self._seen:
            self._say(f"again {self._seen[id(value)][0]}")
        elif depth > _DEPTH:
            self._say(type(value).__qualname__)
        else:
            self._seen[id(value)] = len(self._seen), value
            self._add(value, depth + 1)

    def _say(self, words: str) -> None:
        self._digest.update(words.encode("utf-8", "backslashreplace") + b"\n")

    def _all(self, values: Iterable[object], depth: int) -> None:
        for value in values:
            self.add(value, depth)
        self._say(".")

    def _add(self, value: Any, depth: int) -> None:
        self._say(type(value).__qualname__)
        match value:
            case torch.Tensor():
                self._tensor(value, depth)
            case np.ndarray() if value.dtype != object:
                self._say(f"{value.dtype} {value.shape}")
                self._digest.update(np.ascontiguousarray(value).tobytes())
            case np.ndarray() | tuple() | list():
                self._all(list(value), depth)
            case set() | frozenset():
                self._say(" ".join(sorted(_alone(part) for part in value)))
            case Mapping():
                self._all((part for item in value.items() for part in item), depth)
            case torch.nn.Module():
                self.module(value, depth)
            case types.FunctionType():
                self._function(value, depth)
            case types.MethodType():
                self._all((value.__func__, value.__self__), depth)
            case functools.partial():
                self._all((value.func, value.args, value.keywords), depth)
            case torch.ScriptObject():
                self._all(_unpacked(value), depth)
            case _:
                attributes = _attributes(value)
                self._all((part for name in sorted(attributes) for part in (name, attributes[name])), depth)

    def _tensor(self, value: torch.Tensor, depth: int) -> None:
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

    def _function(self, function: types.FunctionType, depth: int) -> None:
        self._say(function.__qualname__)
        self._code(function.__code__)
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        known = function.__globals__
        named = {name: known[name] for name in _names(function.__code__) if name in known}
        near = {n: v for n, v in named.items() if _is_plain(v) or getattr(v, "__globals__", None) is known}
        self._all((function.__defaults__, function.__kwdefaults__, *cells), depth)
        self._all((part for name in sorted(near) for part in (name, near[name])), depth)

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
        self._seen |= {id(part): (len(self._seen), part) for part in parts.values()}
        # state_dict leaves out buffers that are not to be saved, and has what is packed
        values = {**dict(module.named_parameters()), **dict(module.named_buffers()), **module.state_dict()}
        self._all((part for name in sorted(values) for part in (name, values[name])), depth)
        for name, part in parts.items():
            kind = type(part)
            self._say(f"{name} {kind.__module__}.{kind.__qualname__}")
            self.add(kind.forward, depth)
            own = {n: v for n, v in vars(part).items() if n not in _INTERNAL | _UNSAID}
            self._all((piece for n in sorted(own) for piece in (n, own[n])), depth)
            for hooks in _HOOKS:
                self._all(vars(part).get(hooks, {}).values(), depth)


def _alone(value: object) -> str:
    content = Content()
    content.add(value)
    return content.hexdigest()


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> set[str]:
    inner = (_names(part) for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*inner)


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


def _as_names(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _unpacked(packed: Any) -> tuple[object, ...]:
    """What an object of C++ holds: packed weights and biases of a quantized layer."""
    for name in ("__getstate__", "unpack"):
        try:
            return (getattr(packed, name)(),)
        except (AttributeError, RuntimeError, TypeError):
            continue
    return ()
