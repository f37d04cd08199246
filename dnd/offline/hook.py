"""Refuses sockets beyond loopback in the process that imports it, and writes down who asked for one.

Standard library only, and nothing newer than Python 3.9: it also runs in children, under whatever interpreter they
have and without `dnd`. State is the process's, because audit hooks are: once added they stay, so there is a switch.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys

TYPE_CHECKING = False  # each child pays for what is imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, ClassVar

LOG = "DND_OFFLINE_LOG"
"""Names the file to which this process and its children append what they tried, a line of JSON each."""
CHILDREN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "children")  # noqa: PTH118, PTH120
"""The folder that children begin with."""

_LOCAL = {-1, 0, *(getattr(socket, name, -1) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG"))}
"""Families that stay in this machine's kernel; -1 is a socket made from a descriptor, asked again when it is used."""
_IP = {int(socket.AF_INET), int(socket.AF_INET6)}
_AROUND = {"dnd", "click", "pluggy"}
"""Packages that only call the one who tries."""
_SHOWN = 100
"""Characters of a child's command."""


class NetworkRefused(RuntimeError):
    """Somebody asked for the network. No OSError: libraries take those for a bad line and try again."""


class _State:
    installed = False
    active = False
    log = ""
    error: ClassVar[Callable[[str], Exception]] = NetworkRefused


def install(log: str, error: Callable[[str], Exception] = NetworkRefused) -> None:
    """Refuse from now on, and append to the file `log` what was tried; `error` makes what is raised."""
    _State.active, _State.log, _State.error = True, log, error
    if not _State.installed:
        _State.installed = True
        sys.addaudithook(_audit)
        _check_before_lookups()


def release() -> None:
    """Refuse no longer."""
    _State.active = False


def active_log() -> str | None:
    """The file that is written to; None where nothing is refused."""
    return _State.log if _State.active else None


# --- what is seen ------------------------------------------------------------------------------------


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event.startswith("socket.") and _State.active:
        check = _CHECKS.get(event)
        if check:
            check(*args)


def _check_before_lookups() -> None:
    """Check the methods of `socket.socket` too: they look names up before their audit event, and `listen` has none."""

    def guarded(name: str, check: Callable[..., None]) -> None:
        method = getattr(socket.socket, name)

        def checked(self: socket.socket, *args: Any) -> Any:
            if _State.active:
                check(self, *args)
            return method(self, *args)

        checked.__name__, checked.__doc__ = name, method.__doc__
        setattr(socket.socket, name, checked)

    guarded("connect", _connect)
    guarded("connect_ex", _connect)
    guarded("bind", _bind)
    guarded("listen", _listen)
    guarded("sendto", lambda sock, *args: _send(sock, args[-1] if len(args) > 1 else None))
    guarded("sendmsg", lambda sock, *args: _send(sock, args[3] if len(args) > 3 else None))


def _new(_sock: Any, family: int, _type: int, _protocol: int) -> None:
    if family not in _LOCAL and family not in _IP:
        known = {int(one): one.name for one in socket.AddressFamily}
        _refuse(f"open a socket of family {known.get(family, family)}")


def _connect(sock: Any, address: Any, what: str = "connect to") -> None:
    host = _host(sock, address)
    if host is not None and not is_loopback(host):
        _refuse(f"{what} {_place(address)}")


def _send(sock: Any, address: Any) -> None:
    if address is not None:
        _connect(sock, address, "send to")


def _bind(sock: Any, address: Any) -> None:
    """The wildcard address with port 0 is how a free port is found: that exposes nothing until it listens."""
    host = _host(sock, address)
    stream = int(sock.type) == int(socket.SOCK_STREAM)
    if host is not None and not is_loopback(host) and not (stream and host in ("", "0.0.0.0", "::") and not address[1]):
        _refuse(f"bind to {_place(address)}")


def _listen(sock: Any, *_backlog: int) -> None:
    address = sock.getsockname()
    host = _host(sock, address)
    if host is not None and not is_loopback(host):
        _refuse(f"listen on {_place(address)}")


def _look_up(host: Any, port: Any = None, *_rest: Any) -> None:
    """A number needs no question to a name server; who connects to it is refused then."""
    name = _text(host)
    if name and _packed(name) is None and not is_loopback(name):
        _refuse(f"look up {name if port is None else _place((name, port))}")


def _look_up_address(address: Any) -> None:
    name = _text(address[0] if isinstance(address, tuple) else address)
    if not is_loopback(name):
        _refuse(f"look up {name}")


_CHECKS: dict[str, Callable[..., None]] = {
    "socket.__new__": _new,
    "socket.connect": _connect,
    "socket.sendto": _send,
    "socket.sendmsg": _send,
    "socket.bind": _bind,
    "socket.getaddrinfo": _look_up,
    "socket.gethostbyname": _look_up,
    "socket.gethostbyaddr": _look_up_address,
    "socket.getnameinfo": _look_up_address,
}


# --- addresses ---------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether a name or a number in any spelling means this machine alone, without looking anything up."""
    packed = _packed(host)
    if packed is None:
        return host.lower() == "localhost"
    if len(packed) == 16 and packed.startswith(b"\0" * 10 + b"\xff\xff"):
        packed = packed[12:]
    return packed[:1] == b"\x7f" if len(packed) == 4 else packed == b"\0" * 15 + b"\1"


def _packed(host: str) -> bytes | None:
    """The bytes of an address; None for a name."""
    if not host or not host.isascii() or any(c.isspace() for c in host):
        return None
    try:
        return socket.inet_aton(host)  # also 127.1, 0x7f000001, 2130706433
    except (OSError, ValueError):
        pass
    try:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    except (OSError, ValueError):
        return None


def _host(sock: Any, address: Any) -> str | None:
    """The host asked for; None where the kernel of this machine is all that is asked, or Python will refuse it."""
    family = int(sock.family)
    if family in _LOCAL:
        return None
    if family not in _IP:
        return "?"
    return _text(address[0]) if isinstance(address, tuple) and len(address) > 1 else None


def _text(host: Any) -> str:
    if isinstance(host, (bytes, bytearray)):
        return bytes(host).decode("ascii", "replace")
    return "" if host is None else str(host)


def _place(address: Any) -> str:
    if not (isinstance(address, tuple) and len(address) > 1):
        return repr(address)
    host, port = _text(address[0]) or "0.0.0.0", _text(address[1])
    return f"{host} port {port}" if port and port != "0" else host


# --- who ---------------------------------------------------------------------------------------------


def _refuse(what: str) -> None:
    import json

    who = _who()
    command = " ".join(getattr(sys, "orig_argv", None) or getattr(sys, "argv", None) or ["?"])
    command = command if len(command) <= _SHOWN else command[:_SHOWN] + "..."
    line = json.dumps({"who": who, "what": what, "pid": os.getpid(), "command": command}) + "\n"
    try:
        file = os.open(_State.log, os.O_WRONLY | os.O_APPEND)  # one write: lines of several processes do not mix
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)
    except OSError as error:
        sys.stderr.write(f"{who} tried to {what}, which could not be noted: {error}\n")
    raise _State.error(f"{who} tried to {what}, but this process is to stay offline")


def _who() -> str:
    """The module that is to blame, where it stands, and the libraries it went through."""
    import threading

    frame, main = sys._getframe(1), threading.main_thread()
    if threading.current_thread() is main:
        return _blame(_calls(frame)) or "the interpreter"
    # Whoever started a thread, or handed work to a pool of them, is not among its callers.
    meanwhile = _blame(_calls(sys._current_frames().get(main.ident or 0)))
    return (_blame(_calls(frame)) or "a thread") + (f", during {meanwhile}" if meanwhile else "")


def _calls(frame: FrameType | None) -> list[tuple[str, str]]:
    """(package, module and place) of the calls that led here, the outermost first, without the standard library's."""
    calls: list[tuple[str, str]] = []
    library: frozenset[str] = getattr(sys, "stdlib_module_names", frozenset())
    while frame is not None:
        module = frame.f_globals.get("__name__") or "?"
        package = module.partition(".")[0]
        if package not in library and frame.f_globals is not globals():
            place = f"{module} ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"  # noqa: PTH119
            calls.insert(0, (package, place))
        frame = frame.f_back
    return calls


def _blame(calls: list[tuple[str, str]]) -> str:
    """The first package that `dnd` called, at its last place before it called another; or of all, outside `dnd`."""
    first = next((i for i, (package, _) in enumerate(calls) if package == "dnd"), 0)
    inner = [call for call in calls[first:] if call[0] not in _AROUND] or calls[-1:]
    packages = list(dict.fromkeys(package for package, _ in inner))
    own = [place for _, place in itertools.takewhile(lambda call: call[0] == packages[0], inner)]
    return "".join(own[-1:]) + (f", through {', '.join(packages[1:])}" if packages[1:] else "")
