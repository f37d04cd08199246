"""The network under study: had from a function of the user's own, named by a digest, hooked at work."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dnd.errors import UsageError
from dnd.target.fingerprint import fingerprint
from dnd.target.hooked import HookedTarget
from dnd.target.preprocess import Preprocess

__all__ = ["HookedTarget", "Preprocess", "fingerprint", "load_function"]


def load_function(name: str) -> tuple[torch.nn.Module, Preprocess]:
    """Call "module:function", which gives (module, preprocess); modules in the current folder are found too.

    That folder counts for this alone, and after all that is installed: a numpy.py there never replaces numpy.
    """
    with _current_folder_last():
        return _load_function(name)


@contextmanager
def _current_folder_last() -> Iterator[None]:
    before, here = list(sys.path), os.getcwd()  # noqa: PTH109
    sys.path[:] = [path for path in before if path not in ("", here)] + [here]
    try:
        yield
    finally:
        if sys.path[-1:] == [here]:  # else their code has changed it, which is theirs to do
            sys.path[:] = before


def _load_function(name: str) -> tuple[torch.nn.Module, Preprocess]:
    where, _, what = name.partition(":")
    try:
        function = getattr(run_theirs(name, lambda: importlib.import_module(where)), what, None)
        names = dir(sys.modules[where])
    except (ImportError, SyntaxError) as error:
        hint = "Run from the folder it lies in, or install it."
        if isinstance(error, SyntaxError):
            hint = "Mend that line."
        elif error.name and not f"{where}.".startswith(f"{error.name}."):
            hint = f"{where!r} imports it: install it into this environment."
        raise UsageError(f"cannot import {where!r} for the target {name!r}: {error}", hint) from error
    if not callable(function):
        close = difflib.get_close_matches(what, names, n=1)
        raise UsageError(f"{where!r} has no function {what!r}", f"Did you mean {close[0]}?" if close else "")
    missing = _missing_arguments(function)
    if missing:
        hint = "It is called without any: give them defaults, or name a function that fills them in."
        raise UsageError(f"the target {name} wants arguments: {', '.join(missing)}", hint)
    found = run_theirs(name, function)
    if not (
        isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], torch.nn.Module) and callable(found[1])
    ):
        raise UsageError(f"{name} gives {type(found).__name__}", "It must return (torch.nn.Module, preprocess).")
    return found


def run_theirs(name: str, work: Callable[[], Any]) -> Any:
    """The user's code: a fault in it is reported with the target's name."""
    try:
        return work()
    except SystemExit as error:
        hint = "Give (module, preprocess) without sys.exit; guard a script's part with `if __name__ == '__main__':`."
        raise UsageError(f"the target {name} ends the process with {error.code}", hint) from error
    except Exception as error:
        error.add_note(f"in the target {name}")
        raise


def _missing_arguments(function: Callable[..., Any]) -> list[str]:
    """Arguments that it cannot be called without."""
    try:
        wanted = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of something compiled
        return []
    return [p.name for p in wanted if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
