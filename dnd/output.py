"""What a run leaves behind: labels.csv, labels.jsonl, run.toml and run.json (docs/run-folder.md)."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from dnd.api import Grading, Label
from dnd.labels import N_LABELS
from dnd.mapping import Tally
from dnd.stages import Finding
from dnd.store import write_atomic

CSV_COLUMNS = ("layer", "unit", "status", "label", "score", "label_2", "score_2", "label_3", "score_3", "reason")
_DIGITS = 4
"""Decimals of a score in the files: more would only be noise of the batch size."""


def labels_csv(labels: Iterable[Label]) -> str:
    """The table others script against: one line per unit, concepts only where the status is `labelled`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for label in labels:
        given = label.labels if label.status == "labelled" else ()
        cells = [cell for concept, score in given for cell in (concept, f"{score:.{_DIGITS}f}")]
        cells += [""] * (2 * N_LABELS - len(cells))
        writer.writerow([label.unit.layer, label.unit.index, label.status, *cells, label.reason])
    return text.getvalue()


def finding_record(finding: Finding) -> dict[str, Any]:
    """One unit with its evidence as JSON; images are named by their digest in the store."""
    label = finding.label
    captions = finding.captions or (None,) * len(finding.exemplars)
    record: dict[str, Any] = {
        "layer": label.unit.layer,
        "unit": label.unit.index,
        "status": label.status,
        "labels": [{"concept": c, "score": round(s, _DIGITS)} for c, s in label.labels],
        "reason": label.reason,
        "exemplars": [
            {
                "image": e.digest,
                "source": e.source,
                "box": e.box and [round(edge, 4) for edge in e.box],
                "activation": _short(e.activation),
                "caption": caption,
            }
            for e, caption in zip(finding.exemplars, captions, strict=True)
        ],
        "candidates": [],
    }
    for row, concept in enumerate(finding.concepts):
        candidate: dict[str, Any] = {"concept": concept}
        if finding.activations is not None:
            candidate["score"] = round(finding.scores[row], _DIGITS)
            candidate["drive"] = round(finding.drives[row], _DIGITS)
            candidate["images"] = [
                {"image": picture.digest, "activation": _short(value)}
                for picture, value in zip(finding.images[row], finding.activations[row], strict=True)
            ]
        record["candidates"].append(candidate)
    return record


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def write_findings(out: Path, findings: Sequence[Finding]) -> None:
    """labels.jsonl first, labels.csv last: who sees the table sees all of it."""
    lines = [json.dumps(finding_record(finding), ensure_ascii=False) + "\n" for finding in findings]
    write_atomic(out / "labels.jsonl", "".join(lines).encode())
    write_atomic(out / "labels.csv", labels_csv(finding.label for finding in findings).encode())


def write_provenance(
    out: Path, tallies: Sequence[Tally], *, seconds: float, facts: Mapping[str, Any], grading: Grading | None
) -> None:
    """run.json: with what, on what and how long. `facts` are what the pipeline knows of the run."""
    record: dict[str, Any] = {
        "versions": _versions(),
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
            }
            for t in tallies
        },
    }
    if grading is not None:
        record["truth"] = asdict(grading)
    write_atomic(out / "run.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("dnd-describe", "torch", "transformers", "diffusers", "numpy", "pillow", "pyarrow"):
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
