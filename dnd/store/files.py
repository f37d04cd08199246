"""Files that are written whole or not at all; and what becomes of those that a disk has damaged."""

from __future__ import annotations

import errno
import logging
import os
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from dnd.errors import StoreError
from dnd.files import put_in_place, remedy
from dnd.offline.block import raise_if_tried
from dnd.store.digests import sha256_of

_LOG = logging.getLogger(__name__)


def write_atomic(
    path: Path | Callable[[str], Path],
    data: bytes | Iterable[bytes] | Callable[[BinaryIO], None],
    *,
    flush: bool = True,
    below: Path | None = None,
) -> Path:
    """Write a whole file or nothing; raises StoreError where the disk will not have it.

    A link in the file's place is replaced, never followed. With `below`, no folder between that one and the file may
    be a link either.

    `path` may follow from the sha256 of what is written. `data` is given as a whole, in parts, or by who writes it
    into the file. Without `flush` a power cut, though not a kill, may lose what was written in the last seconds.
    """
    raise_if_tried()  # what was made while the network was tried is not kept
    shown = path if isinstance(path, Path) else path("...")
    temporary = shown.parent / f".{shown.name[:64]}.{uuid.uuid4().hex}.tmp"
    if below is not None:
        _refuse_links(shown.parent, below)
    try:
        shown.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if callable(data):
                data(file)
            else:
                file.writelines([data] if isinstance(data, bytes) else data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        final = path if isinstance(path, Path) else path(sha256_of(temporary))
        put_in_place(temporary, final)
    except OSError as error:
        raise StoreError(f"cannot write {shown}: {error.strerror or error}", how_to_go_on(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return final


def _refuse_links(folder: Path, top: Path) -> None:
    while folder not in (top, folder.parent):
        if folder.is_symlink():
            raise StoreError(f"{folder} is a symbolic link", "A store holds none: delete it, or choose another store.")
        folder = folder.parent


def how_to_go_on(error: OSError) -> str:
    """The hint for a run folder or a store that cannot be written."""
    return remedy(
        error,
        space="Free some space or choose another --out, then give the command again: what is computed is kept.",
        rights="Choose an --out that you may write to; the store lies beside it, or where $DND_STORE says.",
        other="Choose another --out, or another $DND_STORE, then give the command again: what is computed is kept.",
    )


def raise_unless_damaged(error: Exception, path: Path) -> None:
    """StoreError where a file cannot be read for another reason than what is in it: permissions, too many open."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        raise StoreError(f"cannot read {path}: {error.strerror}", "Check its permissions.") from error


def set_aside(path: Path) -> None:
    """Take a damaged file out of use, but leave it for the user to examine."""
    _LOG.warning("%s is damaged: it is set aside, and what it held is computed again", path)
    try:
        path.replace(path.with_name(f"damaged-{path.name}"))
    except FileNotFoundError:
        pass  # by a process beside us
    except OSError as error:
        raise StoreError(
            f"{path} is damaged and cannot be set aside: {error.strerror or error}", "Delete it, then run again."
        ) from error
