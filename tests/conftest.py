"""What every test finds: a cache of its own, the network as it was, and the environment as it was."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from dnd.offline import hook
from dnd.offline.environment import OFFLINE

# The same examples every time, however busy the machine; `--hypothesis-profile default` tries new ones.
settings.load_profile("ci")
SET_BY_THE_USER = frozenset(os.environ)


def pytest_configure() -> None:
    """Where the tests run in the background, Ctrl-C may be ignored, and so it would be by every child of theirs."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every reason why tests were skipped, with how many; it says what brings them (tests/needs.py)."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in terminalreporter.getreports("skipped")
    )
    if reasons:
        terminalreporter.section("not run here, and what brings them")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:>4} test{'s' if count > 1 else ' '}  {reason}")


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Remembered digests and measured rates stay out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DND_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    """The command line and runs switch libraries off the network for good: here only until the test's end, and where
    a fixture of a wider scope did it, until the next test begins."""
    for name in OFFLINE.keys() - SET_BY_THE_USER:
        os.environ.pop(name, None)
    before = dict(os.environ)
    yield
    hook.release()
    os.environ.clear()
    os.environ.update(before)
