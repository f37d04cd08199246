"""Concept sets: the lines of a text file."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from dnd import api

HERE = Path(__file__).parent


def concept_set(name: str) -> list[str]:
    """The distinct lines of a concept set; UsageError where there is none."""
    path = Path(name).expanduser()
    if name == "common-words":
        path = HERE / "words.txt"
    elif name.startswith("package:"):
        package, _, rest = name.removeprefix("package:").partition("/")
        spec = util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise api.UsageError(f"the concept set {name!r} is part of a package that is not installed: {package}")
        path = Path(spec.submodule_search_locations[0]) / rest
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise api.UsageError(
            f"cannot read the concept set {path}: {getattr(error, 'strerror', None) or error}",
            "Set method.concepts to a text file with one concept per line, or to common-words.",
        ) from error
    concepts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not concepts:
        raise api.UsageError(f"the concept set {path} is empty")
    return concepts
