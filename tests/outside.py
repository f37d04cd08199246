"""Distributions of other people's plugins, as pip would leave them: a module beside a dist-info folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

CAPTIONER = """
from dnd.api import Captioner, Config, hookimpl

class Mine(Captioner):
    name = "{name}"
    class Config(Config):
        words: int = 3
        loud: bool = False
    def caption(self, images):
        return ["x" * self.config.words for _ in images]

@hookimpl
def register_captioners():
    return [Mine]
"""


def install(
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    distribution: str,
    code: str,
    *,
    version: str = "1.2",
    points: Mapping[str, str] | None = None,
    extras: str = "",
) -> str:
    """Put a distribution with one module on sys.path; returns the module's name. `points` is group -> line."""
    module = distribution.replace("-", "_")
    site = root / distribution
    info = site / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    extra = f"Provides-Extra: {extras}\n" if extras else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{extra}")
    lines = points or {"dnd": f"{distribution} = {module}"}
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{line}\n" for group, line in lines.items()))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(__import__("sys").modules, module, raising=False)
    return module
