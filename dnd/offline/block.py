"""Nobody calls home: while a command works, no socket leads beyond loopback, in this process or its children.

A library may swallow the refusal and go on, so what was tried is also written down, and `raise_if_tried` makes it an
error; `dnd.store.files` asks before it makes anything durable. What is seen and what not: docs/airgap.md.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dnd.errors import OfflineError
from dnd.offline import hook

_PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "ftp", "ws", "wss")]
_SHOWN = 3


def forbid_network() -> None:
    """From here to the end of this process, children included. What was tried before is forgotten."""
    log = _new_log()
    atexit.register(_remove, log, os.getpid())
    _prepare_children(log)
    hook.install(str(log), OfflineError)


@contextmanager
def offline() -> Iterator[None]:
    """The same for a block, in all threads of this process; its end raises what was tried in it.

    Children that outlive the block stay offline. Inside another block, or after `forbid_network`, the outer one goes on
    after it, and is not told again of what was tried in the inner one.
    """
    outer, before, log = hook.active_log(), dict(os.environ), _new_log()
    try:
        _prepare_children(log)
        hook.install(str(log), OfflineError)
        try:
            yield
        finally:
            raise_if_tried()
    finally:
        if outer:
            hook.install(outer, OfflineError)
        else:
            hook.release()
        for name in (hook.LOG, hook.GUARD, "PYTHONPATH", *_spellings()):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        _remove(log, os.getpid())


def raise_if_tried() -> None:
    """OfflineError where this process or a child asked for the network, whatever became of the refusal."""
    log = hook.active_log()
    if log is None:
        return
    try:
        lines = Path(log).read_text("utf-8").splitlines()
    except OSError as error:
        raise OfflineError(f"what tried the network is unknown, as {log} is gone: {error.strerror}") from error
    if lines:
        raise _error([json.loads(line) for line in lines])


def _error(tried: list[dict[str, str | int]]) -> OfflineError:
    told = []
    for one in tried:
        child = "" if one["pid"] == os.getpid() else f" (in the child process {one['command']!r})"
        told.append(f"{one['who']} tried to {one['what']}{child}")
    told = list(dict.fromkeys(told))
    more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return OfflineError(
        f"this command stays offline, but {'; '.join(told[:_SHOWN])}{more}",
        "Give it what it looks for as local files, or switch that off in its settings; only `dnd models` may download.",
    )


def _prepare_children(log: Path) -> None:
    """Let every Python child begin with `dnd/offline/children/sitecustomize.py`, and let none go through a proxy."""
    os.environ[hook.LOG], os.environ[hook.GUARD] = str(log), hook.CHILDREN
    path = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part and part != hook.CHILDREN]
    os.environ["PYTHONPATH"] = os.pathsep.join([hook.CHILDREN, *path])
    for name in _spellings():
        os.environ.pop(name, None)


def _spellings() -> list[str]:
    """The variables that lead to a proxy: on loopback, it would carry out what must stay in."""
    return [spelt for name in _PROXIES for spelt in (name, name.upper())]


def _new_log() -> Path:
    file, name = tempfile.mkstemp(prefix="dnd-offline-")
    os.close(file)
    return Path(name)


def _remove(log: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        log.unlink(missing_ok=True)
