"""A finished run, as `dnd.describe` returns it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import Grading, Label
from dnd.results.run import RunFolder
from dnd.results.unit import Finding
from dnd.runtime.stats import StageStats

if TYPE_CHECKING:
    from dnd.results.run import Card


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    findings: Sequence[Finding]
    """One per unit, with all that led to its label; put together anew each time one is asked for."""
    grading: Grading | None
    labels: list[Label]
    """One per unit, in the order of layers and units."""
    unreadable: Sequence[tuple[str, str]] = ()
    """(name, reason) of each probing image that was skipped."""
    stages: Sequence[StageStats] = ()
    """What each stage did."""
    seconds: float = 0.0
    """That the run took this time."""

    @property
    def exit_code(self) -> int:
        """0, or 3 where some units failed."""
        return 3 if any(label.status == "failed" for label in self.labels) else 0

    def summary(self, page: Path | None = None) -> str:
        """What a scheduler wants to know, as JSON. `page` is the report's, where there is one."""
        record = json.loads((self.folder / "run.json").read_text("utf-8"))
        told = {name: record[name] for name in ("units", "seconds", "truth") if name in record}
        report = {} if page is None else {"report": str(page)}
        return json.dumps({"run": str(self.folder), "exit_code": self.exit_code, **report, **told}, ensure_ascii=False)

    def to_pandas(self) -> Any:
        """labels.csv as a pandas.DataFrame."""
        return self.opened.to_pandas()

    @cached_property
    def opened(self) -> RunFolder:
        """Its folder, as `dnd.open_run` gives it."""
        return RunFolder(self.folder)

    def unit(self, key: object) -> Card:
        """A unit, as `dnd.open_run(folder).unit` gives it: `run.unit(7)`, `run["layer4/7"]`."""
        return self.opened.unit(key)

    def __getitem__(self, key: object) -> Card:
        return self.unit(key)

    def _repr_html_(self) -> str:
        return self.opened._repr_html_()
