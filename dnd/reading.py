"""A finished run read from its folder: labels, evidence and images, one unit in memory at a time.

run = dnd.open_run("runs/x")
run.labels              # as dnd.describe gave them
run[7], run["fc/7"]     # a unit, which shows itself in a notebook
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import Grade, Grading, Label, Unit
from dnd.errors import StoreError, UsageError

if TYPE_CHECKING:
    from dnd.cards import Card

_AGAIN = "Run again with the same command: what is finished is reused."


@dataclass(frozen=True)
class Shown:
    """An exemplar, or a synthetic image."""

    digest: str
    """Of the image in the store; empty where the run kept none."""
    activation: float
    source: str = ""
    """Name of the probing image."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in fractions of the source; None for a whole image."""
    caption: str = ""


@dataclass(frozen=True)
class Candidate:
    """A concept that was considered for a unit."""

    concept: str
    score: float | None
    """None where it was not judged, as for `drive`."""
    drive: float | None
    images: tuple[Shown, ...]
    """Synthetic ones, in the order of their seeds."""


@dataclass(frozen=True)
class Record:
    """A line of labels.jsonl."""

    label: Label
    exemplars: tuple[Shown, ...]
    """Strongest first."""
    candidates: tuple[Candidate, ...]


class RunFolder:
    """A finished run. Nothing but labels.csv is read before it is asked for."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises UsageError where there is no finished run."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise UsageError(f"there is no run folder {self.folder}", "Name the folder that `dnd run --out` wrote.")
        for name in ("labels.csv", "labels.jsonl"):
            if not (self.folder / name).is_file():
                what = "is not finished" if (self.folder / "run.toml").is_file() else "is no run folder"
                raise UsageError(f"{self.folder} {what}: it holds no {name}", _AGAIN)
        self.store = Path(os.environ.get("DND_STORE") or self.folder.resolve().parent / ".dnd-store")
        """Where its images are."""

    @cached_property
    def labels(self) -> list[Label]:
        """One per unit, in the order of layers and units, as labels.csv has them."""
        try:
            with (self.folder / "labels.csv").open(newline="", encoding="utf-8") as file:
                return [_label(row) for row in csv.DictReader(file)]
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"cannot read {self.folder / 'labels.csv'}: {error}", _AGAIN) from error

    @cached_property
    def facts(self) -> dict[str, Any]:
        """run.json; nothing where there is none."""
        file = self.folder / "run.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {file}: {error}", _AGAIN) from error
        return found

    @property
    def grading(self) -> Grading | None:
        """How many labels are right, where the meaning of the units is known."""
        truth = self.facts.get("truth")
        return truth and Grading(**{**truth, "grades": tuple(Grade(**grade) for grade in truth["grades"])})

    @property
    def exit_code(self) -> int:
        """0, or 3 where some units failed."""
        return 3 if any(label.status == "failed" for label in self.labels) else 0

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(label.unit.layer for label in self.labels))

    def records(self) -> Iterator[Record]:
        """Every unit with its evidence, in the order of `labels`."""
        with self._lines.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield self._parse(line, number)

    def record(self, unit: Unit) -> Record:
        """One unit with its evidence."""
        number, start = self._places[unit]
        with self._lines.open("rb") as file:
            file.seek(start)
            return self._parse(file.readline(), number)

    def image_path(self, digest: str) -> Path:
        """Where an image lies, whether or not it is there."""
        return self.store / "images" / digest[:2] / f"{digest[2:]}.png"

    def find(self, key: object) -> Unit:
        """The unit that `key` names: a Unit, "layer/7", ("layer", 7), or 7 in a run of one layer."""
        if isinstance(key, int) and len(self.layers) == 1:
            key = Unit(self.layers[0], key)
        elif isinstance(key, tuple) and len(key) == 2:
            key = Unit(*key)
        elif isinstance(key, str) and key.rpartition("/")[2].isdecimal():
            key = Unit(key.rpartition("/")[0], int(key.rpartition("/")[2]))
        if isinstance(key, Unit) and key in self._units:
            return key
        several = f"; its layers are {', '.join(self.layers)}" if len(self.layers) > 1 else ""
        example = str(self.labels[0].unit) if self.labels else "layer/0"
        raise UsageError(f"the run in {self.folder} has no unit {key}{several}", f"Ask for one like {example!r}.")

    def unit(self, key: object) -> Card:
        """A unit, by any key of `find`; in a notebook it shows itself with its exemplars."""
        from dnd.cards import Card

        return Card(self, self.record(self.find(key)))

    def __getitem__(self, key: object) -> Card:
        return self.unit(key)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Card]:
        from dnd.cards import Card

        return (Card(self, record) for record in self.records())

    def to_pandas(self) -> Any:
        """labels.csv as a pandas.DataFrame."""
        from dnd.cards import read_pandas

        return read_pandas(self.folder / "labels.csv")

    def _repr_html_(self) -> str:
        from dnd.cards import run_html

        return run_html(self)

    @property
    def _lines(self) -> Path:
        return self.folder / "labels.jsonl"

    @cached_property
    def _units(self) -> dict[Unit, Label]:
        return {label.unit: label for label in self.labels}

    @cached_property
    def _places(self) -> dict[Unit, tuple[int, int]]:
        """Unit -> its line in labels.jsonl and where that begins."""
        places, start = {}, 0
        with self._lines.open("rb") as file:
            for number, line in enumerate(file, start=1):
                places[self._parse(line, number).label.unit] = (number, start)
                start += len(line)
        return places

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            return _record(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise StoreError(f"{self._lines}, line {number}, is not what dnd writes: {what}", _AGAIN) from error


def open_run(folder: str | os.PathLike[str]) -> RunFolder:
    """A finished run by its folder."""
    return RunFolder(folder)


def _label(row: Mapping[str, str]) -> Label:
    pairs = ((row[f"label{n}"], row[f"score{n}"]) for n in ("", "_2", "_3"))
    labels = tuple((concept, float(score)) for concept, score in pairs if concept)
    return Label(Unit(row["layer"], int(row["unit"])), row["status"], labels, row["reason"])


def _record(line: Mapping[str, Any]) -> Record:
    labels = tuple((one["concept"], float(one["score"])) for one in line["labels"])
    exemplars = tuple(
        Shown(e["image"] or "", float(e["activation"]), e["source"], e["box"] and tuple(e["box"]), e["caption"] or "")
        for e in line["exemplars"]
    )
    candidates = tuple(
        Candidate(
            c["concept"],
            c.get("score"),
            c.get("drive"),
            tuple(Shown(i["image"], float(i["activation"])) for i in c.get("images", ())),
        )
        for c in line["candidates"]
    )
    unit = Unit(line["layer"], int(line["unit"]))
    sure = tuple(float(one["confidence"]) for one in line["labels"] if "confidence" in one)
    return Record(Label(unit, line["status"], labels, line["reason"], sure), exemplars, candidates)
