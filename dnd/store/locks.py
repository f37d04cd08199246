"""Run folders, and one process at a time: in a run folder, and in the store of models while it changes.

The lock is the system's own on an open file (flock): it ends with the process that holds it, however that ends,
so a dead run never blocks the next. The file names its holder.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TextIO

from dnd.errors import StoreError, UsageError

LOCK = ".lock"
_LONGEST = 4096
"""Characters at most of a holder's description."""


class HeldError(Exception):
    """Another process has the lock; the text names it."""


class OddLockError(OSError):
    """Another file is in the lock's place."""


def run_folder(out: str | os.PathLike[str] | None) -> Path:
    """`out`, or runs/<time>, with a number where two runs begin in the same second."""
    if out:
        return Path(out)
    stem = Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    names = (stem if n == 1 else stem.with_name(f"{stem.name}-{n}") for n in count(1))
    return next(name for name in names if not name.exists())


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Hold a run folder, which is made if need be and goes again if nothing else came into it.

    UsageError, naming the holder, where another process has it; StoreError where it cannot be locked.
    """
    made = not folder.exists()
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if made:
                stack.callback(_remove_empty, folder)
            stack.enter_context(held(folder / LOCK))
        except HeldError as error:
            raise UsageError(
                f"another run is at work in {folder}: {error}",
                "Wait for it or stop it, or choose another folder with --out (what they share is computed once).",
            ) from None
        except OSError as error:
            hint = "Choose a folder that you may write to with --out, on a local disk if this one has no locks (NFS)."
            if isinstance(error, OddLockError):
                hint = f"Nothing was written to it. Delete {folder / LOCK}, if you know who made it."
            raise StoreError(f"cannot use the run folder {folder}: {error.strerror or error}", hint) from error
        yield


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, which exists only that long. HeldError where another process does."""
    with _lock(path) as file:
        with suppress(OSError):  # a full disk: the lock holds all the same
            file.seek(0)
            file.truncate()
            json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}, file)
            file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()  # while it is still ours; who has it open sees that it is gone


def _open(path: Path) -> TextIO:
    """The lock file, made if need be; never what a link in its place leads to, which would be overwritten."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise OddLockError(error.errno, f"{path.name} is a symbolic link") from error
        raise
    facts = os.fstat(number)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        os.close(number)
        raise OddLockError(errno.EEXIST, f"{path.name} is no file of its own but a hard link, a pipe or a device")
    return os.fdopen(number, "a+", encoding="utf-8")


def _lock(path: Path) -> TextIO:
    import fcntl

    while True:
        file = _open(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                    return file
            file.close()  # the last holder took it away between our two steps
        except OSError as error:
            with file:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                raise HeldError(_holder(file)) from None


def _holder(file: TextIO) -> str:
    """What the lock's holder wrote about itself."""
    try:
        file.seek(0)
        facts = json.loads(file.read(_LONGEST))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["since"]))
        return f"process {facts['pid']} on {facts['host']}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has not said which it is"
