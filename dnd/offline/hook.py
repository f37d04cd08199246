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
GUARD = "DND_OFFLINE_GUARD"
"""Names `CHILDREN`, for children that get an environment of their own: their PYTHONPATH has to have it."""
CHILDREN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "children")  # noqa: PTH118, PTH120
"""The folder that children begin with."""

_LOCAL = {-1, 0, *(getattr(socket, name, -1) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG"))}
"""Families that stay in this machine's kernel; -1 is a socket made from a descriptor, asked again when it is used."""
_IP = {int(socket.AF_INET), int(socket.AF_INET6)}
_PLAIN: Any = socket.socket.__mro__[1]
"""What the interpreter itself knows of a socket."""
_NAME_SERVERS = {53, 853, 5353, 5355}
"""Ports whose servers, on this machine too, pass questions on: DNS, over TLS, multicast, LLMNR."""
_NAME_SERVICES = (
    "/run/systemd/resolve/",
    "/run/nscd/",
    "/var/run/nscd/",
    "/run/avahi-daemon/",
    "/var/run/avahi-daemon/",
)
"""Folders of Unix sockets that do the same."""
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
    allowed: ClassVar[set[str]] = set()


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
    _State.allowed.clear()


def allow(host: str) -> None:
    """Let this process look up and connect to a host that the user named, by that name or number and no other."""
    _State.allowed.add(host)
    _State.allowed.update(str(one[4][0]) for one in socket.getaddrinfo(host, None))


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
                if name == "bind" and len(args) == 1:
                    args = (_on_loopback(self, args[0]),)
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
    if host is not None and not is_loopback(host) and host not in _State.allowed:
        _refuse(f"{what} {_place(address)}")
    if host is not None and _is_name_server((_pair(address) or (None, None))[1]):
        _refuse(f"{what} a name server, {_place(address)}")
    if host is None and _path(address).startswith(_NAME_SERVICES):
        _refuse(f"{what} a name service, {_path(address)}")


def _path(address: Any) -> str:
    """Of a Unix socket."""
    return os.path.normpath(_text(address)) if isinstance(address, (str, bytes, bytearray)) else ""


def _send(sock: Any, address: Any) -> None:
    if address is not None:
        _connect(sock, address, "send to")


def _bind(sock: Any, address: Any) -> None:
    host = _host(sock, address)
    if host is not None and not is_loopback(host):
        _refuse(f"bind to {_place(address)}")


def _on_loopback(sock: Any, address: Any) -> Any:
    """The wildcard address with port 0 is how a free port is found: loopback has one too, and exposes nothing."""
    host, pair = _host(sock, address), _pair(address)
    stream = int(sock.type) == int(socket.SOCK_STREAM)
    if host is None or pair is None or not stream or host not in ("", "0.0.0.0", "::") or pair[1] != 0:
        return address
    return ("::1" if _family(sock) == int(socket.AF_INET6) else "127.0.0.1", *pair[1:])


def _listen(sock: Any, *_backlog: int) -> None:
    address = sock.getsockname()
    host = _host(sock, address)
    if host is not None and not is_loopback(host):
        _refuse(f"listen on {_place(address)}")


def _look_up(host: Any, port: Any = None, *_rest: Any) -> None:
    """A number needs no question to a name server; who connects to it is refused then."""
    name = _text(host)
    if name and _packed(name) is None and not is_loopback(name) and name not in _State.allowed:
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
    family = _family(sock)
    if family in _LOCAL:
        return None
    if family not in _IP:
        return "?"
    pair = _pair(address)
    return None if pair is None else _text(pair[0])


def _family(sock: Any) -> int:
    """The socket's own: a subclass's property may say another."""
    return int(_PLAIN.family.__get__(sock) if isinstance(sock, _PLAIN) else sock.family)


def _text(host: Any) -> str:
    """What the kernel will be given: a subclass may say something else of itself."""
    if isinstance(host, str):
        return str.__str__(host)
    if isinstance(host, (bytes, bytearray)):
        return memoryview(host).tobytes().decode("ascii", "replace")
    if isinstance(host, int):
        return int.__repr__(host)
    return "" if host is None else str(host)


def _pair(address: Any) -> tuple[Any, ...] | None:
    """(host, port, ...) of an internet address, read past whatever a subclass of tuple says."""
    return (
        tuple.__getitem__(address, slice(None)) if isinstance(address, tuple) and tuple.__len__(address) > 1 else None
    )


def _is_name_server(port: Any) -> bool:
    """Whether what is sent there, though it stays on this machine at first, is passed on to the network."""
    return isinstance(port, int) and int.__index__(port) in _NAME_SERVERS


def _place(address: Any) -> str:
    pair = _pair(address)
    if pair is None:
        return repr(address)
    host, port = _text(pair[0]) or "0.0.0.0", _text(pair[1])
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
