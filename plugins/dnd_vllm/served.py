"""A backend whose model is served by vLLM: the server's life, chats, and what to do when it fails."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dnd.api import Backend, DeviceError, DndError, ItemError, ModelError, Runtime, UsageError
from dnd_llama.conversation import Ask

if TYPE_CHECKING:
    from dnd_vllm.client import Client, Trouble
    from dnd_vllm.interpreter import Interpreter
    from dnd_vllm.server import Server

_TRIES = 4
"""Of one chat, while the server is in health."""
_DYING = 3.0
"""Seconds in which a server that lost a connection may turn out to be dead."""


class Served(Backend):
    """Comes before the interface among a backend's bases."""

    requires = ("httpx", "psutil")
    spreads = False
    config: Any
    """A `ServerConfig`, with `max_new_tokens` and `structured`."""
    shows_images: ClassVar[bool] = False
    """Whether chats hold images."""

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._server: Server | None = None
        self._client: Client | None = None
        self._python: Interpreter | None = None
        self._restarted = False
        self._lender: Served | None = None

    def check(self) -> Sequence[str | DndError]:
        return list(self._faults())

    def _faults(self) -> Iterator[DndError]:
        from dnd_vllm import interpreter, launch

        config = self.config
        try:
            if config.url is None:
                self._python = interpreter.find(config.python)
                if self.shows_images and not self._python.vision:
                    yield interpreter.without_vision(self._python)
            else:
                with closing(self._connect(config.url, self._key(), config.served_model)) as client:
                    client.check()
        except DndError as error:
            yield error
        if config.url is not None:
            return
        try:
            launch.make_plan(config, self.runtime, self.runtime.weights(config.model))
        except UsageError as error:
            yield error
        except ModelError:
            pass  # the core looks at models itself

    def memory(self) -> int:
        """Of each GPU that shares the model; nothing for a server that is running already."""
        from dnd_vllm import launch

        if self.config.url is not None:
            return 0
        folder = self.runtime.weights(self.config.model)
        return launch.memory(self.config, self.runtime, folder)

    def borrow(self, lender: Backend) -> bool:
        """Of another backend of this plugin whose server would be the same, the server."""
        if not isinstance(lender, Served) or not self.config.same_server(lender.config):
            return False
        self._lender = lender
        return True

    def load(self) -> None:
        """PluginError tells why vLLM did not start, with its last lines."""
        if self._client is not None:
            return
        self._restarted = False
        for fault in self._faults():
            raise fault
        if self.config.url is not None:
            self._client = self._connect(self.config.url, self._key(), self.config.served_model)
        elif self._lender is not None and self._lender._server is not None:
            self._server = self._lender._server
            self._join(self._server)
        else:
            self._start()

    def _start(self) -> None:
        from dnd_vllm import interpreter, launch
        from dnd_vllm.server import Server

        config = self.config
        python = self._python or interpreter.find(config.python)
        folder = self.runtime.weights(config.model)
        plan = launch.make_plan(config, self.runtime, folder)
        if self._server is None:
            images = self.shows_images or (self._lender is not None and self._lender.shows_images)
            self._server = Server(
                lambda socket: launch.command(config, plan, python, folder, socket, images=images),
                launch.environment(config, plan),
            )
        _say(f"starting vLLM {python.vllm} for {config.model}")
        self._server.start(self._ready, config.startup_seconds, _say)
        self._join(self._server)
        assert self._client is not None
        self._client.check()

    def _join(self, server: Server) -> None:
        from dnd_vllm import launch
        from dnd_vllm.server import URL

        self._client = self._connect(URL, server.key, launch.SERVED, server.socket)

    def _ready(self, socket: Path) -> bool:
        from dnd_vllm.server import URL

        with closing(self._connect(URL, "", "", socket)) as client:
            return client.healthy()

    def _connect(self, url: str, key: str, model: str, socket: Path | None = None) -> Client:
        from dnd_vllm.client import Client

        return Client(url, key, model, socket, concurrency=self.config.concurrency, seconds=self.config.answer_seconds)

    def _key(self) -> str:
        """UsageError where the variable is not set."""
        variable = self.config.api_key_env
        if variable is None:
            return ""
        if not os.environ.get(variable):
            raise UsageError(f"the variable {variable} (api_key_env) is not set", f"export {variable}=...")
        return os.environ[variable]

    def answer(self, asks: Sequence[Ask]) -> list[str]:
        """Raises DeviceError where the server is lost for good."""
        from dnd_vllm.client import Trouble

        answers: dict[int, str] = {}
        tries = 0
        while len(answers) < len(asks):
            self.load()
            assert self._client is not None
            todo = [i for i in range(len(asks)) if i not in answers]
            try:
                found = self._client.answer(
                    [asks[i] for i in todo],
                    max_new_tokens=self.config.max_new_tokens,
                    structured=self.config.structured,
                )
            except UsageError as error:  # no fault of a unit's: stop here
                raise DeviceError(str(error), error.hint) from error
            got = {i: text for i, text in zip(todo, found, strict=True) if isinstance(text, str)}
            troubles = [text for text in found if isinstance(text, Trouble)]
            answers |= got
            tries = 1 if got else tries + 1
            if troubles:
                self._mend(troubles, tries)
        return [answers[i] for i in range(len(asks))]

    def _mend(self, troubles: Sequence[Trouble], tries: int) -> None:
        """Wait, or start the server again, so that another try makes sense; where none does, ItemError if the server is
        in health, else DeviceError."""
        worst = next((trouble for trouble in troubles if not trouble.lost), troubles[0])
        hung = any(trouble.hung for trouble in troubles)
        server, client = self._server, self._client
        assert client is not None
        if server is None:
            if tries >= _TRIES or hung:
                hint = "What is finished is kept. See to the server there, then run the same command again."
                raise DeviceError(f"the server at {self.config.url} gives no answers: {worst}", hint)
            time.sleep(2.0**tries - 1)
            return
        ended = server.wait_for_end(_DYING if worst.lost else 0.5)
        if not ended and not hung and tries < _TRIES and client.healthy():
            time.sleep(0.5 * tries)
            return
        problem = "gives no answers" if server.alive() else "died"
        if self._restarted and not (worst.lost or hung) and client.healthy():
            raise ItemError(f"the server is in health but fails on this: {worst}")
        if self._restarted:
            raise server.lost(f"{problem} ({worst}), and so it did before it was started anew")
        _say(f"the server {problem} ({worst}); starting it once more")
        self._restarted = True
        self._disconnect()
        server.stop()
        try:
            self._start()
        except DndError as error:
            raise DeviceError(f"the server {problem} ({worst}); started once more, {error}", error.hint) from error

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def close(self) -> None:
        self._disconnect()
        server, self._server = self._server, None
        lent = self._lender is not None and server is self._lender._server
        if server is not None and not lent:
            server.close()


def _say(text: str) -> None:
    """A server may take minutes to start: whoever waits should see something move."""
    logging.getLogger("dnd.notes").info("vllm: %s", text)
