"""Run folders as they lie on disk, read a unit at a time: a run may hold more than fits in memory."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dnd.errors import StoreError, UsageError
from dnd.report.record import Record
from dnd.store import Store

UnitKey = tuple[str, int]


class RunFolder:
    """A finished run: its facts, and its units by (layer, index)."""

    def __init__(self, folder: Path) -> None:
        """UsageError where `folder` holds no finished run, StoreError where what it holds cannot be read."""
        self.folder = folder
        self.labels = folder / "labels.jsonl"
        if not self.labels.is_file():
            raise UsageError(f"{folder} is not the folder of a finished run: it has no labels.jsonl", _hint(folder))
        self.name = folder.resolve().name
        self.provenance = _json(folder / "run.json")
        self.settings = _toml(folder / "run.toml")
        self.evaluation = _json(folder / "evaluation.json")
        self.store = Store(Path(os.environ.get("DND_STORE") or folder.resolve().parent / ".dnd-store"))
        self._places = dict(self._scan())

    def units(self) -> list[UnitKey]:
        """In the order of the file."""
        return list(self._places)

    def read(self, unit: UnitKey) -> Record | None:
        """A unit's record; None where the run does not have that unit."""
        place = self._places.get(unit)
        if place is None:
            return None
        with self.labels.open("rb") as file:
            file.seek(place[1])
            return self._record(file.readline(), place[0])

    def _scan(self) -> Iterator[tuple[UnitKey, tuple[int, int]]]:
        """Where each unit's line is: its number and its offset. Every line is checked on the way."""
        offset = 0
        try:
            with self.labels.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        record = self._record(line, number)
                        yield (record.layer, record.unit), (number, offset)
                    offset += len(line)
        except OSError as error:
            raise StoreError(
                f"cannot read {self.labels}: {error.strerror}", "Check the folder's permissions."
            ) from error

    def _record(self, line: bytes, number: int) -> Record:
        try:
            return Record.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            what = f"{where}: {first['msg']}" if where else first["msg"]
            raise StoreError(
                f"line {number} of {self.labels} is damaged: {what}",
                "Give the `dnd run` command of this run again: what the store holds is not computed anew.",
            ) from error


def _hint(folder: Path) -> str:
    if (folder / "run.toml").is_file():
        return f"The run did not finish: `dnd run {folder / 'run.toml'} --out {folder}` goes on with it."
    return "Name a folder that `dnd run` made: the last line it prints is its path."


def _json(file: Path) -> Mapping[str, Any]:
    """Facts beside the labels; none where there is no such file."""
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {file}: {error}", "Mend that file, or move it away.") from error
    return found if isinstance(found, dict) else {}


def _toml(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {file}: {error}", "Mend that file, or move it away.") from error
