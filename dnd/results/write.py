"""What a run leaves behind: labels.csv, labels.jsonl, run.toml and run.json (docs/results.md)."""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import N_LABELS, Grading, Label
from dnd.results.unit import Finding
from dnd.runtime.stats import StageStats
from dnd.store.files import write_atomic
from dnd.text import csv_lines

if TYPE_CHECKING:
    from dnd.results.unit import Exemplar

CSV_COLUMNS = ("layer", "unit", "status", "label", "score", "label_2", "score_2", "label_3", "score_3", "reason")
_DIGITS = 4
"""Decimals of a score in the files: more would only be noise of the batch size."""


def labels_csv(labels: Iterable[Label]) -> Iterator[str]:
    """The table others script against: one line per unit, concepts only where the status is `labelled`."""

    def row(label: Label) -> list[object]:
        given = label.labels if label.status == "labelled" else ()
        cells = [cell for concept, score in given for cell in (concept, f"{score:.{_DIGITS}f}")]
        cells += [""] * (2 * N_LABELS - len(cells))
        return [label.unit.layer, label.unit.index, label.status, *cells, label.reason]

    return csv_lines(chain([CSV_COLUMNS], map(row, labels)))


def finding_record(finding: Finding) -> dict[str, Any]:
    """One unit with its evidence as JSON; images are named by their digest in the store."""
    label = finding.label
    captions = finding.captions or (None,) * len(finding.exemplars)
    record: dict[str, Any] = {
        "layer": label.unit.layer,
        "unit": label.unit.index,
        "status": label.status,
        "labels": [
            {"concept": c, "score": round(s, _DIGITS), **({} if sure is None else {"confidence": round(sure, _DIGITS)})}
            for (c, s), sure in zip_longest(label.labels, label.confidences)
        ],
        "reason": label.reason,
        "exemplars": [
            {
                "image": e.digest,
                "source": e.source,
                "box": e.box and [round(edge, 4) for edge in e.box],
                "activation": _short(e.activation),
                "caption": caption,
                **_attention(e),
            }
            for e, caption in zip(finding.exemplars, captions, strict=True)
        ],
        "candidates": [],
    }
    for row, concept in enumerate(finding.concepts):
        candidate: dict[str, Any] = {"concept": concept}
        if finding.scores:
            candidate["score"] = round(finding.scores[row], _DIGITS)
        if finding.activations is not None:
            candidate["drive"] = round(finding.drives[row], _DIGITS)
            candidate["images"] = [
                {"image": picture.digest, "activation": _short(value)}
                for picture, value in zip(finding.images[row], finding.activations[row], strict=True)
            ]
        record["candidates"].append(candidate)
    if finding.sample is not None:
        record["sample"] = asdict(finding.sample)
    if finding.dropped:
        record["dropped"] = [{"concept": concept, "reason": reason} for concept, reason in finding.dropped.items()]
    return record


def _attention(exemplar: Exemplar) -> dict[str, Any]:
    """What the unit looked at in the source image; empty where that is not known."""
    found: dict[str, Any] = {}
    if exemplar.view:
        found["view"] = exemplar.view
    if exemplar.boxes:
        found["boxes"] = [[round(edge, 4) for edge in box] for box in exemplar.boxes]
    if exemplar.attention:
        packed, frame = exemplar.attention.packed, exemplar.attention.frame
        cells = base64.b64encode(packed[2:]).decode()
        found["map"] = {"shape": [packed[0], packed[1]], "frame": [round(edge, 4) for edge in frame], "cells": cells}
    return found


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def write_findings(out: Path, findings: Iterable[Finding]) -> list[Label]:
    """labels.jsonl first, labels.csv last: who sees the table sees all of it. The labels, of findings taken once."""
    labels = []

    def lines() -> Iterator[bytes]:
        for finding in findings:
            labels.append(finding.label)
            yield (json.dumps(finding_record(finding), ensure_ascii=False) + "\n").encode()

    write_atomic(out / "labels.jsonl", lines())
    write_atomic(out / "labels.csv", (line.encode() for line in labels_csv(labels)))
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
    write_atomic(out / "run.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


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
