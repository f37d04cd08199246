"""vLLM's OpenAI server as a child process, behind a Unix socket in a folder that nobody else can enter.

A port of loopback is anybody's: another user of the machine could take it first and be given the key and the captions.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dnd.api import DeviceError, PluginError
from dnd_vllm.failures import explain, last_words, plain

HOST = "127.0.0.1"
URL = "http://localhost"
"""What requests to the socket are addressed to; nothing is looked up."""
_LONGEST = 100
"""Bytes of a socket's path: the kernel takes 107."""
_TAIL = 256 * 1024
"""Bytes of the log that are looked at."""
_STOP = 20.0
"""Seconds that the reaper has for its work, grace included."""
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_HOST_IP": HOST,
    "VLLM_LOOPBACK_IP": HOST,
    "NO_COLOR": "1",
}
"""Offline, without reports of use. vLLM finds out its own address by a socket to the internet unless it is told."""


class Server:
    """One child process at a time. `log` gets all that it prints; it is deleted by `close` unless the server failed."""

    grace = 5.0
    """Seconds that it has to end by itself, before it and all that it started are killed."""

    def __init__(self, command: Callable[[Path], Sequence[str]], env: Mapping[str, str]) -> None:
        """`command` makes the command line for a Unix socket."""
        self.key = secrets.token_urlsafe(32)
        self._command = command
        self._env = {**env, **_QUIET, "VLLM_API_KEY": self.key}
        self._folder = _private_folder()
        self.socket = self._folder / "s"
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = False
        handle, name = tempfile.mkstemp(prefix="dnd-vllm-", suffix=".log")
        os.close(handle)
        self.log = Path(name)

    def start(self, ready: Callable[[Path], bool], seconds: float, say: Callable[[str], None]) -> None:
        """Start it and wait until `ready(socket)`; PluginError tells why it did not get there."""
        self._spawn()
        if problem := self._wait(ready, seconds, say):
            log = self.tail()
            self.stop()
            raise self._failure(problem, log, PluginError)

    def _spawn(self) -> None:
        self.socket.unlink(missing_ok=True)  # of one that died
        reaper = Path(__file__).with_name("reaper.py")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(reaper), str(self.grace), *self._command(self.socket)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd="/",  # `python -m` would import a user's ./vllm or ./torch.py
                start_new_session=True,  # Ctrl-C is for us to act upon
            )

    def _wait(self, ready: Callable[[Path], bool], seconds: float, say: Callable[[str], None]) -> str:
        """ "" once it is ready, else what went wrong."""
        began = told = time.monotonic()
        while time.monotonic() - began < seconds:
            if not self.alive():
                return "stopped before it was ready"
            if ready(self.socket):
                say(f"ready after {time.monotonic() - began:.0f} s")
                return ""
            if time.monotonic() - told >= 10:
                told = time.monotonic()
                last = [line for raw in self.tail().splitlines() if (line := plain(raw))][-1:] or ["starting"]
                say(f"{told - began:.0f} s: {last[0][:100]}")
            time.sleep(0.2)
        return f"was not ready after {seconds:.0f} s (startup_seconds)"

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_for_end(self, seconds: float) -> bool:
        """Whether it ends within that time."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        return not self.alive()

    def tail(self) -> str:
        """The end of the log."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL))
            return file.read().decode("utf-8", "replace")

    def lost(self, problem: str) -> DeviceError:
        """The error for a server that died at work."""
        error = self._failure(problem, self.tail(), DeviceError)
        assert isinstance(error, DeviceError)
        return error

    def _failure(self, problem: str, log: str, kind: type[PluginError | DeviceError]) -> PluginError | DeviceError:
        self._failed = True
        cause, remedy = explain(log)
        lines = "".join(f"\n  {line}" for line in last_words(log)) or "\n  (nothing)"
        because = f": {cause}" if cause else ""
        return kind(
            f"the vLLM server {problem}{because}. From its log ({self.log}):{lines}",
            remedy or "The log has the whole story; what is finished is kept, and the same command goes on from there.",
        )

    def stop(self) -> None:
        """End the whole process tree. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()  # the reaper sees this
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
        if process.returncode is None or process.returncode < 0:  # the reaper itself hangs, or was killed
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_STOP)

    def close(self) -> None:
        """`stop`, and the log goes too unless an error names it."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        if not self._failed:
            self.log.unlink(missing_ok=True)


def _private_folder() -> Path:
    """Of this user alone (mode 0700), where nobody else can put another in its place, and near enough to the root for
    a socket's path."""
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):
        if len(os.fsencode(parent)) + len("/dnd-vllm-12345678/s") <= _LONGEST and _is_safe(parent.resolve()):
            return Path(tempfile.mkdtemp(prefix="dnd-vllm-", dir=parent))
    raise PluginError(
        f"other users may rename folders in {tempfile.gettempdir()}: a socket in it could be theirs",
        "Set TMPDIR to a folder that only you may write to, with a short path.",
    )


def _is_safe(folder: Path) -> bool:
    """Whether no other user than root may rename what is in a folder, or the folder itself."""
    for place in (folder, *folder.parents):
        state = place.stat()
        others_write = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not state.st_mode & stat.S_ISVTX
        if state.st_uid not in (0, os.getuid()) or others_write:
            return False
    return True
