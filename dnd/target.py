"""The network under study: had from a function of the user's own, named by a digest, watched at work."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from dnd.errors import UsageError
from dnd.images import probe_image
from dnd.watched import Preprocess, Watched

__all__ = ["Preprocess", "Watched", "fingerprint", "load_function"]


def load_function(name: str) -> tuple[torch.nn.Module, Preprocess]:
    """Call "module:function", which gives (module, preprocess); modules in the current folder are found too."""
    where, _, what = name.partition(":")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        function = getattr(_run_theirs(name, lambda: importlib.import_module(where)), what, None)
        names = dir(sys.modules[where])
    except (ImportError, SyntaxError) as error:
        hint = "Run from the folder it lies in, or install it."
        if isinstance(error, SyntaxError):
            hint = "Mend that line."
        elif error.name and not f"{where}.".startswith(f"{error.name}."):
            hint = f"{where!r} imports it: install it into this environment."
        raise UsageError(f"cannot import {where!r} for the target {name!r}: {error}", hint) from error
    finally:
        sys.path.remove(os.getcwd())  # noqa: PTH109
    if not callable(function):
        close = difflib.get_close_matches(what, names, n=1)
        raise UsageError(f"{where!r} has no function {what!r}", f"Did you mean {close[0]}?" if close else "")
    lacking = _lacking(function)
    if lacking:
        hint = "It is called without any: give them defaults, or name a function that fills them in."
        raise UsageError(f"the target {name} wants arguments: {', '.join(lacking)}", hint)
    found = _run_theirs(name, function)
    if not (
        isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], torch.nn.Module) and callable(found[1])
    ):
        raise UsageError(f"{name} gives {type(found).__name__}", "It must return (torch.nn.Module, preprocess).")
    return found


def _run_theirs(name: str, work: Callable[[], Any]) -> Any:
    """Code of the user's own: a fault in it is told with the target's name, and ends nothing by itself."""
    try:
        return work()
    except SystemExit as error:
        hint = "Give (module, preprocess) without sys.exit; guard a script's part with `if __name__ == '__main__':`."
        raise UsageError(f"the target {name} ends the process with {error.code}", hint) from error
    except Exception as error:
        error.add_note(f"in the target {name}")
        raise


def _lacking(function: Callable[..., Any]) -> list[str]:
    """Arguments that it cannot be called without."""
    try:
        wanted = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of something compiled
        return []
    return [p.name for p in wanted if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def fingerprint(module: torch.nn.Module, preprocess: Preprocess) -> str:
    """sha256 over the module's structure, its weights, its layers' `forward` code, and what `preprocess` does.

    Of functions that a `forward` calls the code is not seen. Raises UsageError for a preprocess with chance in it, or
    whose values are not finite.
    """
    digest = hashlib.sha256(repr(module).encode())
    for kind in sorted({type(part) for part in module.modules()}, key=_kind_name):
        digest.update(f"\n{_kind_name(kind)}\n{_source(kind)}".encode())
    values = {**dict(module.named_buffers()), **module.state_dict()}  # which lacks buffers that are not to be saved
    for name, value in sorted(values.items()):
        digest.update(f"\n{name} ".encode())
        _add(digest, value)
    image = probe_image()
    once, again = preprocess(image), preprocess(image)
    if not once.isfinite().all():
        raise UsageError(
            "the target's preprocess gives values that are not finite for a made-up image",
            "Look for a division by zero: a mean or deviation of the image itself, say.",
        )
    if not torch.equal(once, again):
        raise UsageError(
            "the target's preprocess gives another tensor each time for the same image",
            "Use the transform for evaluation: without random crops, flips or the like.",
        )
    _add(digest, once)
    return digest.hexdigest()


def _kind_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _source(kind: type[torch.nn.Module]) -> str:
    try:
        return inspect.getsource(kind.forward)
    except (OSError, TypeError):
        return ""


def _add(digest: hashlib._Hash, value: object) -> None:
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    else:
        digest.update(repr(value).encode())
