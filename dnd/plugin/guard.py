"""Around the code of plugins: what it changes of the process is put back, and it ends nothing by itself."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from dnd.errors import PluginError

_LOG = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def unchanged(who: str) -> Iterator[None]:
    """The current folder and torch's default dtype are afterwards what they were; a change is logged with `who`."""
    folder, dtype = _folder(), _default_dtype()
    try:
        yield
    finally:
        if folder is not None and _folder() != folder:
            _LOG.warning("%s changed the current folder: it is %s again", who, folder)
            os.chdir(folder)
        torch: Any = sys.modules.get("torch")
        now = _default_dtype()
        if torch is not None and now not in (None, dtype):
            _LOG.warning("%s changed torch's default dtype to %s: it is %s again", who, now, dtype or torch.float32)
            torch.set_default_dtype(dtype or torch.float32)


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


def _folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:  # it was deleted
        return None


def _default_dtype() -> Any:
    find = getattr(sys.modules.get("torch"), "get_default_dtype", None)  # torch may be half imported
    return find() if find else None
