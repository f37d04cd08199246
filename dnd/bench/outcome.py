"""What became of one run of a combination: all that the tables are made from, kept in its folder as outcome.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dnd.files import read_text
from dnd.store.files import write_atomic
from dnd.text import json_text

_FILE = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    name: str
    key: str
    """Of all that it depends on: another one, and the combination is run again."""
    variants: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    repeat: int = 0
    """Which of the combination's runs it is: with its own seed, the next one, and so on."""
    reason: str = ""
    """Why it failed; empty where it did not."""
    seconds: float = 0.0
    """It really took, with what earlier combinations had left in the store."""
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """As in run.json."""
    peak: int = 0
    """Bytes of main memory the process had in use at most."""
    device_peak: int = 0
    """The same of the fullest GPU."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Units of each status."""
    kinds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Kind of unit -> how many are right, of how many."""
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Figure -> unit -> its value."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Unit -> its label, "" where it has none."""

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{self.name}@{self.repeat}" if self.repeat else self.name

    @property
    def failed(self) -> bool:
        return bool(self.reason)

    @property
    def units(self) -> int:
        return sum(self.counts.values())

    def write(self, folder: Path) -> None:
        write_atomic(folder / _FILE, (json_text(asdict(self), indent=1) + "\n").encode())


def merge(runs: Sequence[Outcome]) -> Outcome:
    """The runs of one combination as one: counts over all of them, seconds of a run on average."""
    first = runs[0]
    reasons = [f"{one.folder}: {one.reason}" if one.repeat else one.reason for one in runs if one.failed]
    return replace(
        first,
        reason="; ".join(reasons),
        seconds=sum(one.seconds for one in runs) / len(runs),
        peak=max(one.peak for one in runs),
        device_peak=max(one.device_peak for one in runs),
        counts={status: sum(one.counts.get(status, 0) for one in runs) for status in first.counts},
        kinds={
            kind: (sum(one.kinds[kind][0] for one in runs), sum(one.kinds[kind][1] for one in runs))
            for kind in first.kinds
            if all(kind in one.kinds for one in runs)
        },
        values={
            figure: {unit: sum(row) / len(row) for unit, row in _rows(runs, figure).items()} for figure in first.values
        },
    )


def _rows(runs: Sequence[Outcome], figure: str) -> dict[str, list[float]]:
    """Unit -> its values in the runs that have one."""
    found: dict[str, list[float]] = {}
    for one in runs:
        for unit, value in one.values.get(figure, {}).items():
            found.setdefault(unit, []).append(value)
    return found


def read_outcome(folder: Path, key: str) -> Outcome | None:
    """A finished combination's, if it is of this key; None where it is to be run."""
    try:
        record = json.loads(read_text(folder / _FILE))
        kinds = {kind: (right, total) for kind, (right, total) in record.pop("kinds").items()}
        found = Outcome(**record, kinds=kinds)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if found.key == key and not found.failed else None
