"""A server on loopback that speaks as much of the hub's HTTP as huggingface_hub uses to list and fetch files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str = COMMIT
    branches: tuple[str, ...] = ("main",)
    licence: str = "apache-2.0"
    token: str | None = None
    """What a gated repository wants to see."""


@dataclass
class FakeHub:
    url: str = ""
    cdn: str = ""
    """Where large files are: another host, as for the real one."""
    repos: dict[str, Repository] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    """Paths whose bytes on the wire are others than the ones described."""
    cut: dict[str, int] = field(default_factory=dict)
    """Paths of which the next answer breaks off after so many bytes."""
    stall: dict[str, int] = field(default_factory=dict)
    """Paths of which answers stand still after so many bytes."""
    down: int = 0
    """An HTTP status for everything."""
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range of every request."""
    release: threading.Event = field(default_factory=threading.Event)

    def ranges(self, path: str) -> list[str | None]:
        return [wanted for method, asked, wanted in self.log if method == "GET" and asked.endswith(f"/{path}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.log.append((self.command, path, self.headers.get("Range")))
        if self.hub.down:
            return self._refuse(self.hub.down, "")
        if path.startswith("cdn/"):
            if "Authorization" in self.headers:  # a token must not leave the hub
                return self._refuse(400, "")
            _, owner, name, *rest = path.split("/")
            return self._send(self.hub.repos[f"{owner}/{name}"], "/".join(rest), {})
        parts = path.removeprefix("api/models/").split("/")
        repo = self.hub.repos.get("/".join(parts[:2]))
        if repo is None:
            return self._refuse(401, "RepoNotFound")
        revision = parts[3] if len(parts) > 3 else "main"
        if revision not in (repo.commit, *repo.branches):
            return self._refuse(404, "RevisionNotFound")
        if path.startswith("api/"):
            return self._card("/".join(parts[:2]), repo)
        return self._file("/".join(parts[:2]), repo, "/".join(parts[4:]))

    def _card(self, name: str, repo: Repository) -> None:
        body = {
            "id": name,
            "sha": repo.commit,
            "gated": "manual" if repo.token else False,
            "cardData": {"license": repo.licence},
            "siblings": [{"rfilename": path} for path in repo.files],
        }
        self._respond(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _file(self, name: str, repo: Repository, path: str) -> None:
        if repo.token and self.headers.get("Authorization") != f"Bearer {repo.token}":
            return self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if path not in repo.files:
            return self._refuse(404, "EntryNotFound")
        data = repo.files[path]
        common = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if path.endswith(".safetensors"):  # large files live elsewhere
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'}
            return self._respond(302, {**common, **linked, "Location": f"{self.hub.cdn}/cdn/{name}/{path}"}, b"")
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return self._send(repo, path, {**common, "ETag": f'"{blob}"'})

    def _send(self, repo: Repository, path: str, headers: dict[str, str]) -> None:
        data = self.hub.sent.get(path, repo.files[path])
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        code = 206 if begin else 200
        if begin:
            headers = {**headers, "Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
        self._respond(code, headers, data[begin:], path)

    def _respond(self, code: int, headers: dict[str, str], body: bytes, path: str = "") -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if (stop := self.hub.cut.pop(path, None)) is not None:
            self.wfile.write(body[:stop])
            self.close_connection = True
        elif (stop := self.hub.stall.get(path)) is not None:
            self.wfile.write(body[:stop])
            self.wfile.flush()
            self.hub.release.wait(30)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _refuse(self, code: int, what: str) -> None:
        self._respond(code, {"X-Error-Code": what} if what else {}, b"{}")


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A hub that runs until the block ends; fill its `repos`."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url, hub.cdn = f"http://127.0.0.1:{server.server_port}", f"http://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
