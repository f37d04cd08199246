"""What a run leaves behind: labels.csv, labels.jsonl, run.toml and run.json (docs/results.md)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dnd.api import N_LABELS, Grading, Label, Unit
from dnd.results.unit import UnitResult
from dnd.runtime.stats import StageStats
from dnd.store.files import write_atomic
from dnd.text import csv_lines, escape_json, json_text

CSV_COLUMNS = ("layer", "unit", "status", "label", "score", "label_2", "score_2", "label_3", "score_3", "reason")
_DIGITS = 4
"""Decimals of a score in the files: more would only be noise of the batch size."""


def labels_csv(labels: Iterable[Label], more: Mapping[str, Mapping[Unit, str]] = MappingProxyType({})) -> Iterator[str]:
    """The table others script against: one line per unit, concepts only where the status is `labelled`. Columns of
    `more` come last, where any unit has something in them."""
    last = {name: cells for name, cells in more.items() if cells}

    def row(label: Label) -> list[object]:
        given = label.labels if label.status == "labelled" else ()
        cells = [cell for concept, score in given for cell in (concept, f"{score:.{_DIGITS}f}")]
        cells += [""] * (2 * N_LABELS - len(cells))
        rest = [own.get(label.unit, "") for own in last.values()]
        return [label.unit.layer, label.unit.index, label.status, *cells, label.reason, *rest]

    return csv_lines(chain([[*CSV_COLUMNS, *last]], map(row, labels)))


def write_results(out: Path, results: Iterable[UnitResult]) -> list[Label]:
    """labels.jsonl first, labels.csv last: who sees the table sees all of it. The labels, of results taken once."""
    labels = list[Label]()
    more: dict[str, dict[Unit, str]] = {"meaning": {}, "verdict": {}}

    def lines() -> Iterator[bytes]:
        for result in results:
            labels.append(result.label)
            if result.meanings:
                more["meaning"][result.unit] = result.meaning
            if result.verdict:
                more["verdict"][result.unit] = result.verdict.word
            yield escape_json(result.model_dump_json(by_alias=True)).encode() + b"\n"

    write_atomic(out / "labels.jsonl", lines())
    write_atomic(out / "labels.csv", (line.encode() for line in labels_csv(labels, more)))
    return labels


def write_provenance(
    out: Path,
    all_stats: Sequence[StageStats],
    *,
    packages: Iterable[str],
    seconds: float,
    facts: Mapping[str, Any],
    grading: Grading | None,
) -> None:
    """run.json: with what, on what and how long. `packages` are what the run's plugins require, `facts` what the
    pipeline knows of the run."""
    record: dict[str, Any] = {
        "versions": _versions(packages),
        "hardware": _hardware(),
        **facts,
        "seconds": round(seconds, 3),
        "stages": {
            t.name: {
                "key": t.key,
                "items": t.items,
                "computed": t.computed,
                "failed": len(t.failures),
                "seconds": round(t.seconds, 3),
                "backend_seconds": round(t.backend_seconds, 3),
                "peak": t.peak,
                **({"device_peak": t.device_peak} if t.device_peak else {}),
                **({"used": t.used} if t.used else {}),
                **({"chosen": t.chosen} if t.chosen else {}),
            }
            for t in all_stats
        },
    }
    if grading is not None:
        record["truth"] = asdict(grading)
    write_atomic(out / "run.json", (json_text(record, indent=1) + "\n").encode())


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in dict.fromkeys(("dnd-describe", "torch", "numpy", "pillow", "pyarrow", *sorted(packages))):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "processor": platform.processor(),
        "cpus": os.cpu_count(),
        "devices": devices,
    }
