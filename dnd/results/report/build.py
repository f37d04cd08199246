"""Building the report: units in order, a few at a time, into a folder that takes the old one's place when whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dnd.api import Unit
from dnd.errors import StoreError, UsageError
from dnd.files import remedy
from dnd.results.report.atlas import Atlas
from dnd.results.report.overview import Overview
from dnd.results.report.pictures import Missing, Pictures
from dnd.results.report.rows import digests, evidence, row, shown
from dnd.results.run import RunFolder
from dnd.results.unit import UnitResult
from dnd.store.locks import HeldError, held

_TOGETHER = 16
"""Units whose evidence is one file."""
_AHEAD = 2
"""Groups whose images are copied while those before them are written."""
MARK = "dnd-report"
"""How the page's HTML identifies itself: only such a folder is ever replaced."""


@dataclass(frozen=True)
class Report:
    """A report that was built."""

    page: Path
    units: int
    missing: Missing


def build_report(
    runs: Sequence[RunFolder], out: Path | None = None, *, progress: Callable[[int], None], workers: int = 4
) -> Report:
    """The report of one run, or of several side by side, in `out` (`report` in the first run's folder).

    `progress` is called with the number of units newly done.
    """
    units = list(dict.fromkeys(unit for run in runs for unit in run.recorded()))
    if not units:
        raise UsageError(f"{runs[0].folder} holds no units", "Run it again with some: dnd run --units ...")
    out = out or runs[0].folder / "report"
    with _replacing(out) as folder:
        with Pictures(folder / "images", workers) as pictures:
            _write(folder, runs, units, pictures, progress)
        for file in resources.files("dnd.results.report").joinpath("page").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    return Report(out / "index.html", len(units), pictures.missing)


def _write(
    folder: Path,
    runs: Sequence[RunFolder],
    units: Sequence[Unit],
    pictures: Pictures,
    progress: Callable[[int], None],
) -> None:
    (folder / "units").mkdir()
    overviews = [Overview(run) for run in runs]
    atlas = Atlas()
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(_groups(runs, units, pictures)):
        for _, records in group:
            for overview, record in zip(overviews, records, strict=True):
                if record is not None:
                    overview.add(record)
            if records[0] is not None:
                atlas.add(records[0])
        rows += [_row(unit, records, overviews, pictures) for unit, records in group]
        details = [[record and evidence(record, pictures) for record in records] for _, records in group]
        _script(folder / "units" / f"{number}.js", "evidence", [number, details])
        progress(len(group))
    missing = [pictures.missing.count, shown(pictures.missing.first)]
    index = {"runs": [o.record() for o in overviews], "units": rows, "together": _TOGETHER, "missing": missing}
    index["atlas"] = atlas.record() if len(runs) == 1 else []
    _script(folder / "data.js", "index", [index])


def _groups(
    runs: Sequence[RunFolder], units: Sequence[Unit], pictures: Pictures
) -> Iterator[list[tuple[Unit, list[UnitResult | None]]]]:
    """Units with their record of each run, some at a time; the images of the next are copied at the same time."""
    waiting: deque[list[tuple[Unit, list[UnitResult | None]]]] = deque()
    for start in range(0, len(units), _TOGETHER):
        group = [(unit, [run.record(unit) for run in runs]) for unit in units[start : start + _TOGETHER]]
        for _, records in group:
            for run, record in zip(runs, records, strict=True):
                pictures.request(run.store, digests(record) if record else ())
        waiting.append(group)
        if len(waiting) > _AHEAD:
            yield waiting.popleft()
    yield from waiting


def _row(
    unit: Unit, records: Sequence[UnitResult | None], overviews: Sequence[Overview], pictures: Pictures
) -> dict[str, Any]:
    answers = {(record.status, record.concept) for record in records if record}
    found = [
        record and {**row(record, pictures), "truth": overview.truth(unit)}
        for record, overview in zip(records, overviews, strict=True)
    ]
    return {"layer": unit.layer, "unit": unit.index, "differs": len(answers) > 1, "runs": found}


def _script(file: Path, function: str, arguments: list[Any]) -> None:
    """Data as a call of a function of the page: a page that was opened from disk may load scripts, but not JSON."""
    text = ",".join(json.dumps(one, allow_nan=False, separators=(",", ":")) for one in arguments)
    file.write_text(f"dnd.{function}({text.replace('<', chr(92) + 'u003c')});\n", "ascii")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of `out` if all goes well, and is gone if not."""
    _check_replaceable(out)
    with _alone(out):
        yield from _replaced(out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One at a time, so that what a killed one left beside `out` can be cleared away."""
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(out.parent / f".{out.name}.lock"))
        except HeldError as error:
            raise UsageError(f"another report is being written to {out}: {error}", "Wait for it.") from None
        except OSError as error:
            raise _unwritable(out, error) from error
        for left in out.parent.iterdir():
            if re.fullmatch(rf"\.{re.escape(out.name)}\.[0-9a-f]{{32}}\.(new|old)", left.name):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _replaced(out: Path) -> Iterator[Path]:
    fresh, old = (out.parent / f".{out.name}.{uuid.uuid4().hex}.{what}" for what in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        yield fresh
        if out.exists():
            os.replace(out, old)
        os.replace(fresh, out)
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def _unwritable(out: Path, error: OSError) -> StoreError:
    hint = remedy(
        error,
        space="Free some space, or choose another folder with --out.",
        rights="Choose a folder that you may write to with --out.",
    )
    return StoreError(f"cannot write {error.filename or out}: {error.strerror or error}", hint)


def _check_replaceable(out: Path) -> None:
    """UsageError where something else than a report would be lost."""
    if out.is_symlink():
        raise UsageError(f"{out} is a symbolic link", "Delete it, or choose another folder with --out.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    page = out / "index.html"
    if not out.is_dir() or not page.is_file() or MARK not in page.read_text("utf-8", errors="replace")[:1000]:
        raise UsageError(f"{out} exists and is not a report", "Choose another folder with --out.")
