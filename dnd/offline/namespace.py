"""`dnd --sealed`: the whole process in a network namespace of its own, in which there is nothing but loopback.

`dnd.offline.block` sees what Python does. This holds back native code and children of any kind too, because the
kernel has no other network to give them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dnd.errors import UsageError

_NEWUSER, _NEWNET = 0x10000000, 0x40000000  # <linux/sched.h>
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1  # <linux/sockios.h>, <net/if.h>
_REMEDY = "Run it without --sealed, or inside a namespace made from outside: unshare -rn dnd run ..."


def seal() -> None:
    """Leave every network but a fresh loopback, for good; UsageError where that cannot be done.

    Root (CAP_SYS_ADMIN) needs the network namespace alone; others get a user namespace around it, in which they keep
    their own user and group and see the files of other users as those of `nobody`.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError(f"--sealed needs Linux; this is {sys.platform}", "Run it without --sealed.")
    if (threads := _threads()) > 1:
        raise UsageError(
            f"--sealed must come before any thread, and {threads} run already", "Start dnd as its own process."
        )
    if sockets := list(_network_sockets()):
        raise UsageError(
            f"--sealed: a socket to the network is open already (file descriptor {sockets[0]}), and would stay so",
            f"Start dnd without it: dnd --sealed ... {sockets[0]}>&-",
        )
    user, group = os.geteuid(), os.getegid()
    reason = _unshare(_NEWNET)
    if reason == errno.EPERM:
        reason = _unshare(_NEWNET | _NEWUSER)
        if not reason:
            _keep_identity(user, group)
    if reason:
        raise UsageError(f"--sealed: the kernel allows no network namespace here: {os.strerror(reason)}", _REMEDY)
    try:
        _raise_loopback()
    except OSError as error:
        raise UsageError(f"--sealed: loopback cannot be brought up in the new namespace: {error}", _REMEDY) from error


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _network_sockets() -> Iterator[int]:
    """Descriptors of this process's sockets that belong to the network around it: inherited, say."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            number = int(entry.name)
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as one:
                    if one.family != socket.AF_UNIX:
                        yield number


def _unshare(flags: int) -> int:
    """0, or the errno of the failure. (os.unshare is there from Python 3.12 on.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.unshare(flags) else 0


def _keep_identity(user: int, group: int) -> None:
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    except OSError as error:
        raise UsageError(f"--sealed: the new namespace cannot keep user {user}: {error}", _REMEDY) from error


def _raise_loopback() -> None:
    import fcntl  # not there on every system

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(asked, _GET_FLAGS, request))[1]
        fcntl.ioctl(asked, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _UP))
