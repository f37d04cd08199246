"""Around the code of plugins: what it changes of the process is put back, and it ends nothing by itself."""

from __future__ import annotations

import locale
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dnd.errors import PluginError

_LOG = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def unchanged(who: str) -> Iterator[None]:
    """What the process shares is afterwards what it was: the current folder, what torch and NumPy do by default, the
    standard streams, signal handlers, the locale, warnings. A change is logged with `who`."""
    before = {name: shared.find() for name, shared in _SHARED.items()}
    try:
        yield
    finally:
        for name, shared in _SHARED.items():
            now = shared.find()
            was = before[name] if before[name] is not _MISSING or now is _MISSING else shared.at_first()
            if _MISSING not in (was, now) and now != was:
                _LOG.warning("%s changed %s to %.60s: it is put back", who, name, now)
                shared.put_back(was)


@contextmanager
def guarded(who: str) -> Iterator[None]:
    """`unchanged`, and what would end the process, `sys.exit` say, is a PluginError that names `who`."""
    try:
        with unchanged(who):
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise PluginError(
            f"{who} ends the process with {type(error).__name__}({error}) ({Path(frame.filename).name}:{frame.lineno})",
            "A plugin raises an error where it cannot go on; it never calls sys.exit.",
        ) from error


def guard(who: str, function: Callable[P, R]) -> Callable[P, R]:
    """The function, `guarded`; what it prints goes to standard error, since standard output is dnd's own."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with guarded(who), redirect_stdout(sys.stderr):
            return function(*args, **kwargs)

    return call


_MISSING = object()
"""Of what is not there yet, or cannot be had."""


def _of(module: str, name: str) -> Callable[[], Any]:
    def find() -> Any:
        found = getattr(sys.modules.get(module), name, None)  # it may be half imported
        return found() if found else _MISSING

    return find


def _torch() -> Any:
    return sys.modules["torch"]


def _folder() -> Any:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # it was deleted
        return _MISSING


def _set_handlers(was: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for one, handler in zip(_SIGNALS, was, strict=True):
            signal.signal(one, handler)


def _errors_of_warnings() -> int:
    """How many kinds of warnings are errors; libraries add other filters when they are imported, and may."""
    return sum(one[0] == "error" for one in warnings.filters)


def _no_more_errors(was: int) -> None:
    left: list[Any] = [one for one in warnings.filters if one[0] == "error"]
    for one in left[: len(left) - was]:
        warnings.filters.remove(one)  # type: ignore[attr-defined]
    warnings.filterwarnings("default", message=r"\Anone\Z", append=True)  # so that it looks at the filters anew


@dataclass(frozen=True)
class _Shared:
    find: Callable[[], Any]
    put_back: Callable[[Any], object]
    at_first: Callable[[], Any] = lambda: _MISSING
    """What it is where its library has just been imported."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHARED = {
    "the current folder": _Shared(_folder, os.chdir),
    "torch's default dtype": _Shared(
        _of("torch", "get_default_dtype"),
        lambda was: _torch().set_default_dtype(was),
        lambda: _torch().float32,
    ),
    "torch's default device": _Shared(
        _of("torch", "get_default_device"),
        lambda was: _torch().set_default_device(None if was.type == "cpu" else was),
        lambda: _torch().device("cpu"),
    ),
    "whether torch notes gradients": _Shared(
        _of("torch", "is_grad_enabled"), lambda was: _torch().set_grad_enabled(was), lambda: True
    ),
    "NumPy's handling of errors": _Shared(_of("numpy", "geterr"), lambda was: sys.modules["numpy"].seterr(**was)),
    "standard error": _Shared(lambda: sys.stderr, lambda was: setattr(sys, "stderr", was)),
    "the handlers of signals": _Shared(lambda: [signal.getsignal(one) for one in _SIGNALS], _set_handlers),
    "the locale": _Shared(lambda: locale.setlocale(locale.LC_ALL), lambda was: locale.setlocale(locale.LC_ALL, was)),
    "warnings into errors": _Shared(_errors_of_warnings, _no_more_errors),
}
"""By what a message calls it."""
