"""Chats to an OpenAI server over HTTP, many at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from dnd.api import ItemError, UsageError
from dnd_llama.conversation import Ask
from dnd_llama.prompts import TEMPLATE


class Trouble(Exception):
    """No answer, for a reason that may pass: the connection, or the server's own fault."""

    def __init__(self, message: str, *, lost: bool = False, hung: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
        """The connection went, rather than that an error came back."""
        self.hung = hung
        """Nothing came back in time."""


class Client:
    """For one model at one server. Threads rather than asyncio: a notebook has a loop of its own already."""

    def __init__(
        self, url: str, key: str, model: str, socket: Path | None = None, *, concurrency: int, seconds: float
    ) -> None:
        """With `socket`, a Unix socket, all goes through that, and `url` is a name only."""
        self._model = model
        self._concurrency = concurrency
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(seconds, connect=10),
            transport=httpx.HTTPTransport(
                limits=httpx.Limits(
                    max_connections=concurrency,
                    max_keepalive_connections=concurrency,
                    keepalive_expiry=3,  # the server drops a connection after 5 s
                ),
                verify=url.startswith("https:"),
                trust_env=False,
                uds=None if socket is None else str(socket),
            ),
            trust_env=False,  # a proxy from the environment would carry the captions away
        )
        self._lost = threading.Event()

    def check(self) -> None:
        """UsageError unless the server takes the key and has the model."""
        try:
            found = self._http.get("/v1/models", timeout=30)
        except httpx.TransportError as error:
            raise UsageError(
                f"nothing answers at {self._http.base_url}: {error or type(error).__name__}",
                "Start the server there, or leave out url and one is started.",
            ) from error
        _refuse(found)
        try:
            names = [str(model["id"]) for model in found.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{self._http.base_url} is not an OpenAI server: /v1/models is not a list") from error
        if self._model not in names:
            raise UsageError(
                f"the server at {self._http.base_url} has no model {self._model!r}; it has {', '.join(names)}",
                "Set served_model to one of these.",
            )

    def healthy(self) -> bool:
        """Whether the server says that it can work."""
        try:
            return self._http.get("/health", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def answer(self, asks: Sequence[Ask], *, max_new_tokens: int, structured: bool) -> list[str | Trouble]:
        """All at once, as far as `concurrency` lets them; in the order of `asks`. Once the connection is lost, what has
        not been sent is not sent. UsageError and ItemError for what no second try can mend."""
        self._lost.clear()
        pool = ThreadPoolExecutor(min(self._concurrency, len(asks) or 1))
        try:
            futures = [pool.submit(self._answer, ask, max_new_tokens, structured) for ask in asks]
            return [future.result() for future in futures]
        finally:
            self._lost.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, ask: Ask, max_new_tokens: int, structured: bool) -> str | Trouble:
        if self._lost.is_set():
            return Trouble("the connection was lost", lost=True)
        try:
            found = self._http.post("/v1/chat/completions", json=self._body(ask, max_new_tokens, structured))
        except httpx.ReadTimeout:
            self._lost.set()
            return Trouble(f"no answer within {self._http.timeout.read:.0f} s", hung=True)
        except (httpx.TransportError, RuntimeError) as error:  # RuntimeError: closed meanwhile
            self._lost.set()
            return Trouble(f"{type(error).__name__}: {error}".rstrip(": "), lost=True)
        if found.status_code >= 500 or found.status_code in (408, 429):
            return Trouble(_said(found))
        _refuse(found)
        try:
            return str(found.json()["choices"][0]["message"]["content"] or "").strip()
        except (ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"{self._http.base_url} does not answer as an OpenAI server: {found.text[:200]!r}"
            ) from error

    def _body(self, ask: Ask, max_new_tokens: int, structured: bool) -> dict[str, object]:
        """Every setting of sampling is said, or the server may take it from the model's generation_config.json."""
        body: dict[str, object] = {
            "model": self._model,
            "messages": list(ask.messages),
            "max_tokens": max_new_tokens,
            "seed": ask.seed,
            "temperature": ask.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "chat_template_kwargs": TEMPLATE,
        }
        if structured and ask.pattern:
            body["structured_outputs"] = {"regex": ask.pattern}
        return body

    def close(self) -> None:
        self._http.close()


def _refuse(found: httpx.Response) -> None:
    """The error for an answer that is a refusal: ItemError where it may be for what one chat says."""
    if found.status_code < 400:
        return
    said = _said(found)
    if found.status_code in (401, 403):
        raise UsageError(f"{found.url} does not take the key: {said}", "Set api_key_env to the variable that holds it.")
    if found.status_code in (400, 413, 422):
        too_long = "context length" in said
        hint = "Raise context_length." if too_long else "vLLM 0.11 or later is needed."
        raise ItemError(f"the server refuses {'so long a prompt' if too_long else 'a chat'}: {said}", hint)
    raise UsageError(f"{found.url} is not there: {said}", "The server must be vLLM's OpenAI server, 0.11 or later.")


def _said(found: httpx.Response) -> str:
    """The server's own words, on one line."""
    try:
        body = found.json()
        message = body["error"]["message"] if isinstance(body["error"], dict) else body["error"]
    except (ValueError, LookupError, TypeError):
        message = found.text
    return f"{found.status_code} {' '.join(str(message).split())[:300]}".strip()
