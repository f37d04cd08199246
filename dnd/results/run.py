"""A finished run read from its folder: labels, evidence and images, one unit in memory at a time.

run = dnd.open_run("runs/x")     # what dnd.describe gives, too
run.labels
run[7], run["fc/7"]     # a unit, which shows itself in a notebook
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from math import nan
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dnd.api import Grading, Label, Unit
from dnd.errors import StoreError, UsageError, first_fault
from dnd.files import read_text
from dnd.results.unit import ScoredConcept, UnitResult
from dnd.results.verdict import Verdict
from dnd.store.folders import results_folder
from dnd.store.images import Store
from dnd.store.toml import parse_toml
from dnd.text import json_text

if TYPE_CHECKING:
    from PIL.Image import Image

M = TypeVar("M", bound=BaseModel)
_LONGEST = 64 << 20
"""Bytes that a unit's line has at most: more is no work of dnd's."""
_AGAIN = "Give the `dnd run` command of this run again: what the store holds is not computed anew."


class _Beside(BaseModel):
    """What labels.jsonl has of a label that labels.csv has not."""

    layer: str
    index: int = Field(alias="unit")
    labels: tuple[ScoredConcept, ...]
    verdict: Verdict | None = None

    @property
    def unit(self) -> Unit:
        return Unit(self.layer, self.index)

    @property
    def confidences(self) -> tuple[float, ...]:
        return tuple(one.confidence for one in self.labels if one.confidence is not None)


class RunFolder:
    """A finished run. Its files are read only when needed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Raises UsageError where there is no finished run."""
        self.folder = Path(folder)
        wrong = "Name a folder that `dnd run` made: `--out`, or `runs/<time>`."
        if not self.folder.is_dir():
            raise UsageError(f"there is no run folder {self.folder}", wrong)
        for name in ("labels.csv", "labels.jsonl"):
            if not (self.folder / name).is_file():
                begun = self.folder / "run.toml"
                if not begun.is_file():
                    raise UsageError(f"{self.folder} is not the folder of a run: it has no {name}", wrong)
                goes_on = f"`dnd run {begun} --out {self.folder}` goes on with it."
                raise UsageError(f"the run in {self.folder} is not finished: it has no {name}", goes_on)
        self.name = self.folder.resolve().name
        self.store = Store(results_folder(self.folder.resolve()))
        """Where its images are."""

    def __repr__(self) -> str:
        return f"<the run in {self.folder}>"

    @cached_property
    def labels(self) -> list[Label]:
        """One per unit, in the order of layers and units: labels.csv with the confidences of labels.jsonl."""
        file = self.folder / "labels.csv"
        try:
            with file.open(newline="", encoding="utf-8") as opened:
                labels = [_label(row) for row in csv.DictReader(opened)]
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise _damaged(file, error) from error
        sure = {line.unit: line.confidences for line, _, _ in self._scan(_Beside) if line.confidences}
        return [replace(label, confidences=sure.get(label.unit, ())) for label in labels] if sure else labels

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """run.json; nothing where there is none, as for the other two."""
        return _table(self.folder / "run.json", json.loads)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """run.toml as it stands."""
        return _table(self.folder / "run.toml", parse_toml)

    @cached_property
    def verdicts(self) -> Mapping[Unit, Verdict]:
        """What `dnd verify` found of each labelled unit; empty where it has not been run."""
        return {line.unit: line.verdict for line, _, _ in self._scan(_Beside) if line.verdict}

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """evaluation.json, which `dnd eval` leaves."""
        return _table(self.folder / "evaluation.json", json.loads)

    @property
    def grading(self) -> Grading | None:
        """How many labels are right, where the meaning of the units is known."""
        try:
            return TypeAdapter(Grading | None).validate_python(self.facts.get("truth"))
        except ValidationError as error:
            raise _damaged(self.folder / "run.json", f"truth.{first_fault(error)}") from error

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(name, reason) of each probing image that was skipped."""
        match self.facts:
            case {"probing": {"unreadable": dict(found)}}:
                return [(str(name), str(reason)) for name, reason in found.items()]
        return []

    @property
    def notes(self) -> list[str]:
        """What a reader of the labels should know besides, a line each."""
        found = self.facts.get("notes")
        return [str(note) for note in found] if isinstance(found, list) else []

    @property
    def readings(self) -> dict[str, str]:
        """How each layer was read, in words: what its units are."""
        return {str(layer): str(text) for layer, text in as_mapping(self.facts.get("layers")).items()}

    @property
    def seconds(self) -> float:
        """That the run took; 0 where that is not known."""
        found = self.facts.get("seconds")
        return float(found) if isinstance(found, int | float) else 0.0

    def summary(self, page: Path | None = None) -> str:
        """Status and counts for a scheduler, as JSON. `page` is the report's, where there is one."""
        chosen = {name: self.facts[name] for name in ("units", "seconds", "truth") if name in self.facts}
        report = {} if page is None else {"report": str(page)}
        words = Counter(one.word for one in self.verdicts.values())
        verdicts = {"verdicts": dict(words)} if words else {}
        found = {"run": str(self.folder), "exit_code": self.exit_code, **report, **chosen, **verdicts}
        return json_text(found)

    @property
    def exit_code(self) -> int:
        """0, or 3 where some units failed."""
        return 3 if any(label.status == "failed" for label in self.labels) else 0

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(label.unit.layer for label in self.labels))

    def records(self) -> Iterator[UnitResult]:
        """Every unit with its evidence, in the order of `labels`."""
        return (record for record, _, _ in self._scan(UnitResult))

    def record(self, unit: Unit) -> UnitResult | None:
        """One unit with its evidence; None where the run does not have it."""
        if unit not in self._places:
            return None
        number, start = self._places[unit]
        try:
            with self._lines.open("rb") as file:
                file.seek(start)
                line = file.readline(_LONGEST)
        except OSError as error:
            raise _damaged(self._lines, error) from error
        return self._parse(UnitResult, line, number)

    def recorded(self) -> list[Unit]:
        """The units that have a record; every one has been checked."""
        return list(self._places)

    def find(self, key: object) -> Unit:
        """The unit that `key` names: a Unit, "layer/7", ("layer", 7), or 7 in a run of one layer."""
        if isinstance(key, Integral) and len(self.layers) == 1:  # a data frame's, too
            key = Unit(self.layers[0], int(key))
        elif isinstance(key, tuple) and len(key) == 2:
            key = Unit(*key)
        elif isinstance(key, str) and key.rpartition("/")[2].isdecimal():
            key = Unit(key.rpartition("/")[0], int(key.rpartition("/")[2]))
        if isinstance(key, Unit) and key in self._units:
            return key
        several = f"; its layers are {', '.join(self.layers)}" if len(self.layers) > 1 else ""
        example = str(self.labels[0].unit) if self.labels else "layer/0"
        raise UsageError(f"the run in {self.folder} has no unit {key}{several}", f"Ask for one like {example!r}.")

    def unit(self, key: object) -> UnitResult:
        """A unit, by any key of `find`; in a notebook it shows itself with its exemplars."""
        record = self.record(unit := self.find(key))
        if record is None:
            raise _damaged(self._lines, f"{unit} is missing, labels.csv has it")
        return record.with_images(self.store)

    def __getitem__(self, key: object) -> UnitResult:
        return self.unit(key)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[UnitResult]:
        return (record.with_images(self.store) for record in self.records())

    def to_pandas(self) -> Any:
        """labels.csv as a pandas.DataFrame, with `confidence` and `auc` of the first label, NaN where there is none.

        A verified run has its verdicts there, and their figures as `verdict_auc` and so on."""
        from dnd.results.notebook import read_pandas

        frame = read_pandas(self.folder / "labels.csv")
        best = [record.best if record.status == "labelled" else None for record in self.records()]
        frame["confidence"] = [nan if label.confidence is None else label.confidence for label in self.labels]
        frame["auc"] = [nan if one is None or one.auc is None else one.auc for one in best]
        for name in ("because", "auc", "needed", "correlation", "auprc") if self.verdicts else ():
            found = [getattr(self.verdicts.get(label.unit), name, None) for label in self.labels]
            frame[f"verdict_{name}"] = [nan if value in (None, "") else value for value in found]
        return frame

    def _repr_html_(self) -> str:
        from dnd.results.notebook import labels_html

        def strongest(label: Label) -> Image:
            unit = self.unit(label.unit)
            if not unit.exemplars:
                raise UsageError(f"{label.unit} has no exemplars")
            return unit.image(unit.exemplars[0])

        return labels_html(self.labels, strongest, self.verdicts)

    @property
    def _lines(self) -> Path:
        return self.folder / "labels.jsonl"

    @cached_property
    def _units(self) -> frozenset[Unit]:
        return frozenset(label.unit for label in self.labels)

    @cached_property
    def _places(self) -> dict[Unit, tuple[int, int]]:
        """Unit -> the number of its line in labels.jsonl and where that begins."""
        return {record.unit: (number, start) for record, number, start in self._scan(UnitResult)}

    def _scan(self, model: type[M]) -> Iterator[tuple[M, int, int]]:
        """Every line as a model, the number of its line, and where that begins."""
        number = start = 0
        try:
            with self._lines.open("rb") as file:
                while line := file.readline(_LONGEST):
                    number += 1
                    if line.strip():
                        yield self._parse(model, line, number), number, start
                    start += len(line)
        except OSError as error:
            raise _damaged(self._lines, error) from error

    def _parse(self, model: type[M], line: bytes, number: int) -> M:
        try:
            return model.model_validate_json(line)
        except ValidationError as error:
            raise StoreError(f"line {number} of {self._lines} is damaged: {first_fault(error)}", _AGAIN) from error


def open_run(folder: str | os.PathLike[str]) -> RunFolder:
    """A finished run by its folder."""
    return RunFolder(folder)


def _label(row: Mapping[Any, Any]) -> Label:
    if None in row or None in row.values():
        raise ValueError(f"a row with more or fewer cells than columns, of unit {row.get('unit')!r:.40}")
    pairs = ((row[f"label{n}"], row[f"score{n}"]) for n in ("", "_2", "_3"))
    labels = tuple((concept, float(score)) for concept, score in pairs if concept)
    if not row["unit"].isdecimal():
        raise ValueError(f"a unit is numbered {row['unit']!r:.40}")
    label = Label(Unit(row["layer"], int(row["unit"])), row["status"], labels, row["reason"])
    if fault := label.fault() or ("a concept of no label" if labels and label.status != "labelled" else ""):
        raise ValueError(f"unit {label.unit}: {fault}")
    return label


def _table(file: Path, parse: Callable[[str], Any]) -> Mapping[str, Any]:
    try:
        found = parse(read_text(file)) if os.path.lexists(file) else {}
        if not isinstance(found, dict):
            raise ValueError("it holds no table")
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, error, "Mend that file, or move it away.") from error
    return found


def as_mapping(value: object) -> Mapping[str, Any]:
    """A table of run.json or run.toml, which may hold anything; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def _damaged(file: Path, why: object, hint: str = _AGAIN) -> StoreError:
    return StoreError(f"cannot read {file}: {getattr(why, 'strerror', None) or why}", hint)
