"""Files that others may have made: read where they are regular files only; and what mends a failure."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from dnd.errors import UsageError

_SPACE = {errno.ENOSPC, errno.EDQUOT}
_WAITLESS = getattr(os, "O_NONBLOCK", 0)
_RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS}


PACKAGE = "package:"
"""`package:NAME/FILE` is a file that an installed package brings along."""


def place_of(name: str, setting: str) -> Path:
    """Where a file or folder is that a setting names: a path, or package:NAME/FILE. UsageError where a package that it
    names is not there."""
    if not name.startswith(PACKAGE):
        return Path(name)
    package, _, file = name.removeprefix(PACKAGE).partition("/")
    spec = util.find_spec(package) if package.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders or not file or ".." in Path(file).parts:
        raise UsageError(f"{setting}: there is no {name}", "Write package:NAME/FILE, or a path.")
    return Path(folders[0]) / file


def is_surroundings(error: OSError) -> bool:
    """Whether it tells of a file or folder that the user has to open, mend or name differently: no bug."""
    return bool(error.filename) and error.errno in _RIGHTS | _SPACE | {errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; OSError for a pipe or a device, which could be waited for or read without end."""
    _check(path, os.stat(path).st_mode)  # before it is opened: to open a device may do something  # noqa: PTH116
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _WAITLESS))  # noqa: SIM115
    try:
        _check(path, os.fstat(file.fileno()).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _check(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EIO, "it is no regular file", str(path))


def no_follow(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses a symbolic link, so that nothing is written to what it leads to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def put_in_place(written: Path, final: Path) -> None:
    """Let a whole file take its place; a link there is replaced. OSError where a pipe or a device is: as root, one
    would replace /dev/null."""
    if final.exists() and not (final.is_file() or final.is_dir()):
        raise OSError(errno.EEXIST, "a pipe or a device is in its place")
    os.replace(written, final)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a regular file, line ends as they are; OSError or UnicodeDecodeError."""
    with open_regular(path) as file:
        return file.read().decode(encoding)


def remedy(error: OSError, *, space: str, rights: str, other: str | None = None) -> str:
    """Of three hints the one that fits why a file cannot be used; `other` is `space` unless given."""
    if error.errno in _RIGHTS:
        return rights
    return space if error.errno in _SPACE or other is None else other


def files_below(folder: Path | str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Files at any depth, hidden ones aside. Links to folders are followed; `above` are the real folders on the way
    here: a link to one of them is a loop. Pipes and devices are no files: they could be read without end."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror or error}", "Check its permissions.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            deeper, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link to itself
            deeper, is_file = False, True
        if deeper:
            yield from files_below(entry.path, above | {real})
        elif is_file or not Path(entry.path).exists():
            yield entry.path
