"""What became of one combination: all that the tables are made from, kept in its folder as outcome.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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

    @property
    def failed(self) -> bool:
        return bool(self.reason)

    @property
    def units(self) -> int:
        return sum(self.counts.values())

    def write(self, folder: Path) -> None:
        write_atomic(folder / _FILE, (json_text(asdict(self), indent=1) + "\n").encode())


def read_outcome(folder: Path, key: str) -> Outcome | None:
    """A finished combination's, if it is of this key; None where it is to be run."""
    try:
        record = json.loads(read_text(folder / _FILE))
        kinds = {kind: (right, total) for kind, (right, total) in record.pop("kinds").items()}
        found = Outcome(**record, kinds=kinds)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if found.key == key and not found.failed else None
