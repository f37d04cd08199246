"""Label the units of a vision network in plain language, with models that run on your own machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnd.pipeline.describe import describe
    from dnd.results.run import open_run

__all__ = ["__version__", "describe", "open_run"]

DISTRIBUTION = "dnd-describe"
"""What pip knows it by."""


def __getattr__(name: str) -> Any:
    """`import dnd` costs nothing: its names are looked up when they are used."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version(DISTRIBUTION)
    if name == "describe":
        from dnd.pipeline.describe import describe

        return describe
    if name == "open_run":
        from dnd.results.run import open_run

        return open_run
    raise AttributeError(f"module 'dnd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
