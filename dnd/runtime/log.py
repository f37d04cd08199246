"""What a run does, as plain lines with the time, in a file: `dnd run --log FILE`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnd.errors import UsageError

_LOG = logging.getLogger(__name__)


@contextmanager
def log_to(file: str | None) -> Iterator[None]:
    """Append the core's log to a file; without one only warnings appear, on stderr. UsageError where it
    cannot be written."""
    if file is None:
        yield
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handler = _File(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"cannot write the log {file}: {error.strerror or error}", "Name another --log.") from error
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z"))
    logger = logging.getLogger("dnd")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """One line each, whatever a model or a file name put into it."""
        text = super().format(record)
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _File(logging.FileHandler):
    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: warn once; the run is worth more than its log."""
        if not self._failed:
            self._failed = True
            print(f"the log {self.baseFilename} cannot be written: {sys.exc_info()[1]}", file=sys.stderr)


def log_stage(stats: Any, backend: Any) -> None:
    """What a backend did in a stage."""
    config = getattr(backend, "config", None)
    settings = {} if config is None else config.model_dump(mode="json")
    _LOG.info(
        "%s: by %s %s%s: %d items, %d of them new, %d failed, %.1f s, in the backend %.1f s, loading %.1f s",
        stats.name,
        getattr(backend, "name", type(backend).__name__),
        json.dumps(settings, ensure_ascii=False),
        f", which chose {json.dumps(stats.chosen, default=str)}" if stats.chosen else "",
        stats.items,
        stats.computed,
        len(stats.failures),
        stats.seconds,
        stats.backend_seconds,
        stats.load_seconds,
    )
