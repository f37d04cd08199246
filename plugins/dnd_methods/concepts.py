"""Concept sets: the lines of a text file."""

from __future__ import annotations

import codecs
import csv
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
        if path.exists() and not path.is_file():
            raise ValueError("it is no regular file")
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except (OSError, ValueError) as error:
        raise api.UsageError(
            f"cannot read the concept set {path}: {getattr(error, 'strerror', None) or error}",
            "Set method.concepts to a text file with one concept per line, or to common-words.",
        ) from error
    lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    found = _column(path, lines) if path.suffix.lower() in (".csv", ".tsv") else lines
    concepts = list(dict.fromkeys(concept for line in found if (concept := line.strip())))
    if not concepts:
        raise api.UsageError(f"the concept set {path} is empty")
    return concepts


def _column(path: Path, lines: list[str]) -> list[str]:
    """The column `concept` of a table, or its only one. Spreadsheets of some countries write semicolons as commas."""
    first = lines[0] if lines else ""
    delimiter = next((sign for sign in "\t;" if sign in first and "," not in first), ",")
    rows = list(csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else delimiter))
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "concept" in head:
        place = head.index("concept")
        return [row[place] for row in rows[1:] if len(row) > place]
    if any(len(row) > 1 for row in rows):
        raise api.UsageError(
            f"the concept set {path} has several columns and none is called concept",
            "Name that of the concepts so in its first line.",
        )
    return [row[0] for row in rows]
