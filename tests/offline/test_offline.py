"""Nobody calls home: whatever asks for the network is refused, named and remembered; what stays here works."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import toys
from outside import install

import dnd.cli.main
from dnd.errors import OfflineError
from dnd.offline import hook
from dnd.offline.block import offline, raise_if_tried
from dnd.offline.environment import OFFLINE
from dnd.offline.hook import is_loopback

AWAY = "192.0.2.1"  # RFC 5737: for documentation, routed nowhere
UNSHARE = shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
needs_namespace = pytest.mark.skipif(not UNSHARE, reason="this machine allows no network namespace")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins without a guard, and leaves none."""
    hook.release()
    for name in (hook.LOG, "PYTHONPATH", "HTTPS_PROXY", *OFFLINE):
        monkeypatch.setenv(name, "")  # for the end of the test
        monkeypatch.delenv(name)
    yield
    hook.release()


def offline_told(work: Callable[[], Any]) -> str:
    """The error with which an offline block ends around some work, which swallows whatever refused it."""

    def block() -> None:
        with offline(), suppress(Exception):
            work()

    with pytest.raises(OfflineError) as told:
        block()
    return str(told.value)


def udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def tcp6() -> socket.socket:
    return socket.socket(socket.AF_INET6)


AWAY_TOO = AWAY.encode()


class Says(str):
    """To whoever asks it is this machine; the kernel gets what is in it."""

    def __str__(self) -> str:
        return "127.0.0.1"

    def lower(self) -> str:
        return "localhost"


class SaysBytes(bytes):
    def __bytes__(self) -> bytes:
        return b"127.0.0.1"


class SaysPair(tuple):  # type: ignore[type-arg]
    def __getitem__(self, place: Any) -> Any:
        return ("127.0.0.1", 443)[place]


class SaysLocal(socket.socket):
    family = socket.AF_UNIX  # type: ignore[assignment]


# --- what is refused, and what is not ----------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "connect": (lambda: socket.socket().connect((AWAY, 443)), f"connect to {AWAY} port 443"),
    "connect_ex": (lambda: socket.socket().connect_ex((AWAY, 443)), f"connect to {AWAY} port 443"),
    "below socket.socket": (lambda: socket.SocketType().connect((AWAY, 443)), f"connect to {AWAY} port 443"),
    "connect by name": (lambda: socket.socket().connect(("example.invalid", 80)), "connect to example.invalid port 80"),
    "create_connection": (lambda: socket.create_connection(("example.invalid", 80)), "look up example.invalid port 80"),
    "IPv6": (lambda: tcp6().connect(("2001:db8::1", 443)), "connect to 2001:db8::1 port 443"),
    "IPv4 in IPv6": (lambda: tcp6().connect((f"::ffff:{AWAY}", 443)), f"connect to ::ffff:{AWAY} port 443"),
    "another spelling": (lambda: socket.socket().connect(("0xc0000201", 443)), "connect to 0xc0000201 port 443"),
    "connect UDP": (lambda: udp().connect((AWAY, 53)), f"connect to {AWAY} port 53"),
    "sendto": (lambda: udp().sendto(b"x", (AWAY, 53)), f"send to {AWAY} port 53"),
    "sendto with flags": (lambda: udp().sendto(b"x", 0, (AWAY, 53)), f"send to {AWAY} port 53"),
    "sendto by name": (lambda: udp().sendto(b"x", ("example.invalid", 53)), "send to example.invalid port 53"),
    "sendmsg": (lambda: udp().sendmsg([b"x"], [], 0, (AWAY, 53)), f"send to {AWAY} port 53"),
    "getaddrinfo": (lambda: socket.getaddrinfo("example.invalid", 443), "look up example.invalid port 443"),
    "getaddrinfo of bytes": (lambda: socket.getaddrinfo(b"example.invalid", 443), "look up example.invalid port 443"),
    "gethostbyname": (lambda: socket.gethostbyname("example.invalid"), "look up example.invalid"),
    "gethostbyname_ex": (lambda: socket.gethostbyname_ex("example.invalid"), "look up example.invalid"),
    "gethostbyaddr": (lambda: socket.gethostbyaddr(AWAY), f"look up {AWAY}"),
    "getnameinfo": (lambda: socket.getnameinfo((AWAY, 443), 0), f"look up {AWAY}"),
    "bind to all": (lambda: socket.socket().bind(("0.0.0.0", 8765)), "bind to 0.0.0.0 port 8765"),
    "bind to all in IPv6": (lambda: tcp6().bind(("::", 8765)), "bind to :: port 8765"),
    "bind UDP": (lambda: udp().bind(("", 0)), "bind to 0.0.0.0"),
    "listen unbound": (lambda: socket.socket().listen(), "listen on 0.0.0.0"),
    "a name server here": (lambda: udp().sendto(b"x", ("127.0.0.53", 53)), "send to a name server, 127.0.0.53 port 53"),
    "a name server over TCP": (
        lambda: socket.socket().connect(("127.0.0.1", 53)),
        "connect to a name server, 127.0.0.1 port 53",
    ),
    "a name service": (
        lambda: socket.socket(socket.AF_UNIX).connect("/run/systemd/resolve/io.systemd.Resolve"),
        "connect to a name service, /run/systemd/resolve/io.systemd.Resolve",
    ),
    "a text that says another": (lambda: socket.socket().connect((Says(AWAY), 443)), f"connect to {AWAY} port 443"),
    "bytes that say another": (
        lambda: socket.socket().connect((SaysBytes(AWAY.encode()), 443)),
        f"connect to {AWAY} port 443",
    ),
    "an address that says another": (
        lambda: socket.socket().connect(SaysPair((AWAY, 443))),
        f"connect to {AWAY} port 443",
    ),
    "a socket that says another": (lambda: SaysLocal().connect((AWAY, 443)), f"connect to {AWAY} port 443"),
    "bind to all below socket.socket": (lambda: socket.SocketType().bind(("", 0)), "bind to 0.0.0.0"),
    "another family": (lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), "open a socket of family AF_PACKET"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_leads_away_is_refused_and_named(form: str) -> None:
    attempt, what = REFUSED[form]
    refused: list[BaseException] = []

    def work() -> None:
        with pytest.raises(OfflineError) as caught:
            attempt()
        refused.append(caught.value)

    told = offline_told(work)
    assert told.startswith("this command stays offline, but ")
    assert re.search(rf"\btest_offline\b.* tried to {re.escape(what)}$", told)
    assert f"tried to {what}, but this process is to stay offline" in str(refused[0])


def test_what_stays_here_works(tmp_path: Path) -> None:
    with offline():
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
            for host in ("127.0.0.1", "localhost", "127.1", b"127.0.0.1"):
                with socket.create_connection((host, port), timeout=5):
                    server.accept()[0].close()
        with udp() as one, udp() as other:
            one.bind(("127.0.0.1", 0))
            other.sendto(b"here", one.getsockname())
            assert one.recv(9) == b"here"
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(str(tmp_path / "s"))
            server.listen()
            client.connect(str(tmp_path / "s"))
        with socket.socket() as finds_a_port:  # as many libraries do
            finds_a_port.bind(("", 0))
            assert finds_a_port.getsockname()[0] == "127.0.0.1"
            assert finds_a_port.getsockname()[1]
            socket.SocketType.listen(finds_a_port)  # nobody sees this, and it exposes nothing
        assert socket.getaddrinfo(AWAY, 443)[0][4] == (AWAY, 443)  # no name server is asked
        assert socket.gethostbyname("localhost") == "127.0.0.1"
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True), ("127.255.3.4", True), ("127.1", True), ("0x7f.1", True), ("2130706433", True),
        ("::1", True), ("0:0:0:0:0:0:0:1", True), ("::ffff:127.0.0.1", True), ("::1%lo", True), ("LOCALHOST", True),
        ("128.0.0.1", False), ("0.0.0.0", False), ("::", False), ("::2", False), ("::ffff:128.0.0.1", False),
        ("localhost.example.invalid", False), ("127.0.0.1.example.invalid", False), ("127.0.0.1 x", False), ("", False),
        ("fe80::1%eth0", False), ("::127.0.0.1", False), ("\uff11\uff12\uff17.0.0.1", False),
    ],
)  # fmt: skip
def test_loopback_in_every_spelling(host: str, here: bool) -> None:
    assert is_loopback(host) is here


def test_a_block_ends_as_it_began_even_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    before = dict(os.environ)

    def block() -> None:
        with offline():
            assert "HTTPS_PROXY" not in os.environ
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert dict(os.environ) == before
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.connect((AWAY, 53))  # sends nothing
    raise_if_tried()


def test_an_inner_block_tells_its_own_and_the_outer_one_goes_on() -> None:
    def work() -> None:
        assert "look up inner.invalid" in offline_told(lambda: socket.getaddrinfo("inner.invalid", 80))
        raise_if_tried()
        socket.getaddrinfo("outer.invalid", 80)

    told = offline_told(work)
    assert "look up outer.invalid" in told
    assert "inner.invalid" not in told


def test_work_handed_to_a_thread_names_what_went_on_meanwhile() -> None:
    def work() -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(socket.getaddrinfo, "example.invalid", 80).exception()

    assert re.search(r"but a thread, during .*\btest_offline tried to look up example.invalid", offline_told(work))


# --- children ----------------------------------------------------------------------------------------

CALL = "import socket; socket.create_connection(('192.0.2.1', 443), timeout=1)"
GRANDCHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CALL!r}], stderr=-3)"


@pytest.mark.parametrize("code", [CALL, GRANDCHILD], ids=["child", "grandchild"])
def test_a_child_is_refused_and_named(code: str) -> None:
    said: list[str] = []

    def work() -> None:
        said.append(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr)

    told = offline_told(work)
    assert "__main__ (<string>:1) tried to connect to 192.0.2.1 port 443 (in the child process" in told
    assert f"{sys.executable} -c import socket; " in told
    assert ("NetworkRefused: __main__ (<string>:1) tried to connect" in said[0]) is (code == CALL)


def test_a_forked_worker_is_refused_and_named() -> None:
    def work() -> None:
        child = os.fork()
        if child == 0:
            with suppress(Exception):
                socket.gethostbyname("example.invalid")
            os._exit(0)
        os.waitpid(child, 0)

    assert re.search(r"\btest_offline tried to look up example.invalid \(in the child process", offline_told(work))


def test_a_child_still_gets_the_sitecustomize_that_ours_stands_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.theirs = __file__")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import sys, sitecustomize; print(sys.theirs == sitecustomize.__file__, 'dnd.offline.hook' in sys.modules)"
    with offline():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert os.environ["PYTHONPATH"] == str(tmp_path)


def test_an_isolated_child_is_not_seen() -> None:
    """As docs/airgap.md admits; `--sealed` is for these."""
    code = "import sys; print('dnd.offline.hook' in sys.modules)"
    with offline():
        seen = {
            flag: subprocess.check_output([sys.executable, flag, "-c", code], text=True) for flag in ("-I", "-E", "-S")
        }
    assert {flag: text.strip() for flag, text in seen.items()} == {"-I": "False", "-E": "False", "-S": "False"}


# --- the command -------------------------------------------------------------------------------------

PLUGIN = """
import socket, subprocess, sys
import toys
from dnd.api import hookimpl

class Caller(toys.Captioner):
    name = "caller"
    def caption(self, images):
{body}
        return super().caption(images)

def network():
    return toys.Net(), toys.preprocess

@hookimpl
def register_captioners():
    return [Caller]

@hookimpl
def register_summarizers():
    return [toys.Summarizer]

@hookimpl
def register_generators():
    return [toys.Generator]

@hookimpl
def register_scorers():
    return [toys.Scorer]
"""
BODIES = {
    "openly": ["socket.create_connection(('192.0.2.1', 443), timeout=1)"],
    "secretly": [
        "try:",
        "    socket.create_connection(('192.0.2.1', 443), timeout=1)",
        "except BaseException:",
        "    pass",
    ],
    "in a child": [f"subprocess.run([sys.executable, '-c', {CALL!r}], stderr=-3)"],
}


class Runs:
    """`dnd run` with the plugin, in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.photos = toys.make_photos(folder / "photos")
        toys.MOOD.__init__()  # type: ignore[misc]

    def run(self, name: str, body: list[str]) -> tuple[Any, str]:
        """Exit status and standard error."""
        code = PLUGIN.format(body=textwrap.indent("\n".join(body or ["pass"]), " " * 8))
        module = install(self.monkeypatch, self.folder / name, "acme-caller", code)
        others = [text for kind in ("summarizer", "generator", "scorer") for text in (f"--{kind}", "toy")]
        small = [text for one in ("exemplars.k=4", "exemplars.sample=12", "images.n=2") for text in ("--set", one)]
        with pytest.raises(SystemExit) as ended:
            dnd.cli.main.main([
                "run", "full", "--quiet", "--target", f"{module}:network", "--layer", "units",
                "--units", "0-2", "--device", "cpu",
                "--probe", str(self.photos), "--captioner", "caller", *others, *small, "--out",
                str(self.folder / "run"),
            ])  # fmt: skip
        return ended.value.code, self.capsys.readouterr().err


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runs:
    return Runs(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("way", BODIES)
def test_a_plugin_that_calls_home_ends_the_run(runs: Runs, way: str) -> None:
    code, said = runs.run("bad", BODIES[way])
    assert code == 1
    assert said.startswith("Error: this command stays offline, but ")
    assert "tried to connect to 192.0.2.1 port 443" in said
    assert "Hint: " in said
    if way == "in a child":
        assert "__main__ (<string>:1)" in said
        assert sys.executable in said
    else:
        assert "but acme_caller (acme_caller.py:" in said
    assert not (runs.folder / "run" / "labels.csv").exists()
    assert not list((runs.folder / ".dnd-store").glob("captions-*/*"))  # nothing that was made meanwhile is kept


def test_the_same_run_without_the_call_succeeds(runs: Runs) -> None:
    assert runs.run("good", []) == (0, "")
    assert (runs.folder / "run" / "labels.csv").is_file()


def test_commands_set_the_switches_and_downloads_stay_possible(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dnd.cli.main.main(["models", "list"])
    assert hook.active_log() is None
    assert "HF_HUB_OFFLINE" not in os.environ
    with pytest.raises(SystemExit):
        dnd.cli.main.main(["plugins", "--json"])
    assert hook.active_log()
    assert {name: os.environ[name] for name in OFFLINE} == OFFLINE


def test_a_plugin_that_calls_home_when_it_is_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, tmp_path, "acme-import", "import socket\nsocket.gethostbyname('example.invalid')")
    with pytest.raises(SystemExit) as ended:
        dnd.cli.main.main(["plugins"])
    assert ended.value.code == 1
    assert "acme_import (acme_import.py:2) tried to look up example.invalid" in capsys.readouterr().err


# --- without a network -------------------------------------------------------------------------------


@needs_namespace
def test_the_microworld_is_labelled_without_any_interface(tmp_path: Path) -> None:
    """Small, but all models and stages of the demo, in a network namespace whose loopback, too, is down."""
    small = ["exemplars.k=3", "exemplars.shortlist=0", "exemplars.sample=16", "concepts.n=2", "images.n=1"]
    small += ["summarizer.n_samples=1", "generator.steps=1", "probing.count=64"]
    settings = [text for one in small for text in ("--set", one)]
    out = tmp_path / "run"
    command = [
        "unshare",
        "-rn",
        sys.executable,
        "-m",
        "dnd",
        "run",
        "--quiet",
        "--units",
        "1,2",
        *settings,
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len((out / "labels.csv").read_text().splitlines()) == 3


SEALED = """
import ctypes, os, socket, subprocess, sys
from dnd.offline.namespace import seal
"".encode("idna")  # what the sockets need of a standard library that the other user may not read
if len(sys.argv) > 1 and os.geteuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which a change of user takes away
before = os.geteuid(), os.getegid()
seal()
assert (os.geteuid(), os.getegid()) == before
libc = ctypes.CDLL(None, use_errno=True)
address = bytes([2, 0, 1, 187, 192, 0, 2, 1, *[0] * 8])  # AF_INET, 443, 192.0.2.1
assert libc.connect(libc.socket(2, 1, 0), address, 16) == -1
print(os.strerror(ctypes.get_errno()))
lines = subprocess.check_output(["cat", "/proc/net/dev"], text=True).splitlines()
print("child:", *(line.partition(":")[0].strip() for line in lines[2:]))
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
    print("loopback")
"""


@needs_namespace
@pytest.mark.parametrize("user", ["own", "other"])
def test_sealed_holds_back_native_code_and_any_child(user: str) -> None:
    """As the user of this test and, where that is root, as one who is not."""
    script = [sys.executable, "-c", SEALED, *(["other"] if user == "other" else [])]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["Network is unreachable", "child: lo", "loopback"]


@needs_namespace
def test_dnd_sealed_is_sealed(tmp_path: Path) -> None:
    code = "import os; print(os.readlink('/proc/self/ns/net'))"
    mine = subprocess.check_output([sys.executable, "-c", code], text=True)
    code = f"import dnd.cli.main\ntry: dnd.cli.main.main(['--sealed', 'plugins'])\nfinally:\n {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "microworld" in done.stdout
    theirs = done.stdout.splitlines()[-1]
    assert theirs.startswith("net:")
    assert theirs != mine.strip()


def test_sealed_leaves_no_socket_that_was_there_before() -> None:
    with socket.socket() as one:
        code = "from dnd.offline.namespace import seal; seal()"
        done = subprocess.run([sys.executable, "-c", code], pass_fds=[one.fileno()], capture_output=True, text=True)
        assert done.returncode == 1
        assert f"a socket to the network is open already (file descriptor {one.fileno()})" in done.stderr


def test_sealed_where_it_cannot_be_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dnd.offline.namespace._unshare", lambda flags: 1)
    monkeypatch.setattr("dnd.offline.namespace._threads", lambda: 1)
    monkeypatch.setattr("dnd.offline.namespace._network_sockets", lambda: [])  # other tests of this process have some
    with pytest.raises(SystemExit) as ended:
        dnd.cli.main.main(["--sealed", "run"])
    assert ended.value.code == 1
    assert "no network namespace here: Operation not permitted" in capsys.readouterr().err
    monkeypatch.setattr("dnd.offline.namespace._threads", lambda: 3)
    with pytest.raises(SystemExit):
        dnd.cli.main.main(["--sealed", "run"])
    assert "must come before any thread, and 3 run already" in capsys.readouterr().err
