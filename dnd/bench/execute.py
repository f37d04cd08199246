"""Every combination through the ordinary run, one after the other in one process, over one store.

Stages are shared as between any runs: what an earlier combination has computed is not computed again. A finished
combination leaves its outcome in its folder and is not run again; one that fails is a row with its reason.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from dnd.bench.matrix import Combination, Matrix
from dnd.bench.outcome import Outcome, read_outcome
from dnd.bench.quality import Judge
from dnd.config.run import Run
from dnd.errors import DndError, OfflineError, UsageError
from dnd.files import read_text
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder
from dnd.runtime.memory import Peak
from dnd.store.files import write_atomic
from dnd.store.keys import digest_of
from dnd.store.locks import only_here

Report = Callable[[int, int, str], None]
"""Called for each run with: its number, of how many, and the name of its folder."""


def run_matrix(
    matrix: Matrix, out: Path, registry: Registry, report: Report, console: Console | None = None
) -> list[Outcome]:
    """An outcome per combination and repeat: all combinations in the matrix's order, then all with the next seed. Runs
    lie in out/runs, and share the store beside them.

    `console` shows each run's progress. UsageError before any work where a combination's settings are wrong.
    """
    with only_here(out):
        return _run_all(matrix, out, registry, report, console)


def _run_all(matrix: Matrix, out: Path, registry: Registry, report: Report, console: Console | None) -> list[Outcome]:
    planned = list(_plan(matrix, registry))
    judge = Judge(matrix.truth, matrix.encoder)
    outcomes = []
    for number, (one, repeat, run, reason) in enumerate(planned, 1):
        blank = Outcome(one.name, _key(matrix, run, registry), one.variants, one.note, repeat)
        folder = out / "runs" / blank.folder
        known = None if run is None else read_outcome(folder, blank.key)
        if known is None:
            report(number, len(planned), blank.folder)
            known = replace(blank, reason=reason) if run is None else _run(blank, run, folder, registry, judge, console)
            known.write(folder)
        outcomes.append(known)
    return outcomes


def _plan(matrix: Matrix, registry: Registry) -> Iterator[tuple[Combination, int, Run | None, str]]:
    """Each combination with its run, or why it cannot be made here (a plugin that does not work, say); all of them
    before any is repeated."""
    for repeat in range(matrix.repeats):
        for one in matrix.combinations:
            try:
                yield one, repeat, one.run(registry, repeat), ""
            except UsageError as error:
                raise UsageError(f"combination {one.name}: {error}", error.hint) from error
            except DndError as error:
                yield one, repeat, None, _in_words(error)


def _key(matrix: Matrix, run: Run | None, registry: Registry) -> str:
    """Of the run's settings, the plugins' versions and what it is judged by."""
    entries = [(c.kind, c.name) for c in run.choices().values()] if run else []
    known = {(e.kind, e.name): [e.distribution, e.version] for e in registry.entries}
    parts: dict[str, Any] = {
        "run": run.to_dict() if run else None,
        "plugins": [[*entry, known.get(entry)] for entry in entries],
        "truth": read_text(matrix.truth) if matrix.truth else None,
        "encoder": matrix.encoder,
    }
    return digest_of(parts)


def _run(blank: Outcome, run: Run, folder: Path, registry: Registry, judge: Judge, console: Console | None) -> Outcome:
    if (folder / "outcome.json").is_file():  # of other settings: the folder is the bench's own
        (folder / "run.toml").unlink(missing_ok=True)
    began, peak = time.perf_counter(), Peak()
    try:
        result = execute(run, folder, registry=registry, console=console)
    except OfflineError:
        raise  # the process has been told to reach for the network: nothing more that it does can be trusted
    except Exception as error:
        reason = _in_words(error)
        if not isinstance(error, DndError):
            write_atomic(folder / "error.txt", traceback.format_exc().encode())
            reason += " (error.txt in its folder says where)"
        return replace(blank, reason=reason, seconds=time.perf_counter() - began)
    seconds = time.perf_counter() - began
    facts = result.facts
    return replace(
        blank,
        seconds=round(seconds, 3),
        stages=facts["stages"],
        peak=max([peak.bytes(), *(stage.get("peak", 0) for stage in facts["stages"].values())]),
        device_peak=max([peak.device_bytes(), *(stage.get("device_peak", 0) for stage in facts["stages"].values())]),
        counts={status: facts["units"].get(status, 0) for status in ("labelled", "uninterpretable", "failed")},
        kinds=_kinds(result),
        values=judge.values(result),
        labels={str(label.unit): label.label for label in result.labels},
    )


def _kinds(result: RunFolder) -> dict[str, tuple[int, int]]:
    return {grade.kind: (grade.right, grade.total) for grade in result.grading.grades} if result.grading else {}


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, DndError) else f"{type(error).__name__}: {text}"
