"""What the page knows of a unit: a row that is always there, and the evidence, which is loaded when it is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from dnd.results.report.pictures import Pictures
from dnd.results.unit import Baseline, Candidate, Exemplar, StoredImage, UnitResult
from dnd.results.verdict import Verdict

_LONG = 2000
"""Characters of a text that the page shows: a model that will not stop must not make the page unusable."""
_THUMBNAILS = 3


def shown(text: str | None) -> str:
    """A text from a model or a file name, at a length that can be shown."""
    text = text or ""
    return text if len(text) <= _LONG else text[:_LONG] + "…"


def digests(record: UnitResult) -> Iterator[str]:
    """Every image that the page shows of a unit."""
    for exemplar in record.exemplars:
        yield exemplar.digest
        if exemplar.view:
            yield exemplar.view
    for candidate in record.candidates:
        for image in candidate.images:
            yield image.digest
    if record.baseline:
        for image in record.baseline.images:
            yield image.digest


def row(record: UnitResult, pictures: Pictures) -> dict[str, Any]:
    """A unit in the list: what it is searched, filtered and sorted by."""
    best = record.best
    copies = (pictures.get(exemplar.digest) for exemplar in record.exemplars)
    texts = [e.caption for e in record.exemplars] + [c.concept for c in record.candidates] + [record.reason]
    return {
        "status": record.status,
        "labels": [[shown(named.concept), number(named.score)] for named in record.labels],
        "meaning": shown(record.meaning) if len(record.meanings) > 1 else None,
        "auc": number(best.auc) if best else None,
        "confidence": confidence(record),
        "verdict": record.verdict.word if record.verdict else None,
        "thumbnails": [copy for copy in copies if copy][:_THUMBNAILS],
        "text": "\n".join(dict.fromkeys(shown(text) for text in texts if text)),
        "reason": shown(record.reason),
        "why": None if record.status == "labelled" else kind_of_reason(record.reason),
    }


def kind_of_reason(reason: str) -> str:
    """A reason without what differs from unit to unit, so that like ones can be counted."""
    alike = re.sub(r"\d+(\.\d+)?", "#", re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason))
    return shown(re.sub(r": (\w+ )?# < #$", "", alike))[:200]


def confidence(record: UnitResult) -> float | None:
    """Of the label, where the run has a calibration."""
    return number(record.labels[0].confidence) if record.labels else None


def evidence(record: UnitResult, pictures: Pictures) -> dict[str, Any]:
    """All that led to a unit's label."""
    return {
        "exemplars": [_exemplar(exemplar, pictures) for exemplar in record.exemplars],
        "candidates": [_candidate(candidate, pictures) for candidate in sorted(record.candidates, key=_rank)],
        "sample": record.baseline and _sample(record.baseline, pictures),
        "density": record.density,
        "confidences": [number(named.confidence) for named in record.labels],
        "dropped": [[shown(one.concept), shown(one.reason)] for one in record.dropped],
        "verdict": record.verdict and _verdict(record.verdict),
        "rounds": [shown(" | ".join(one)) for one in (*record.history, record.meanings) if one],
    }


def number(value: Any) -> Any:
    """As it is; None for what JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rank(candidate: Candidate) -> float:
    return -candidate.score if candidate.score is not None and math.isfinite(candidate.score) else math.inf


def _exemplar(exemplar: Exemplar, pictures: Pictures) -> dict[str, Any]:
    return {
        "image": pictures.get(exemplar.digest),
        "view": pictures.get(exemplar.view) if exemplar.view else None,
        "digest": exemplar.digest,
        "source": shown(exemplar.source),
        "box": exemplar.box,
        "boxes": exemplar.boxes,
        "activation": number(exemplar.activation),
        "caption": exemplar.caption and shown(exemplar.caption),
        "map": exemplar.map and exemplar.map.model_dump(),
    }


def _sample(baseline: Baseline, pictures: Pictures) -> dict[str, Any]:
    images = [[pictures.get(one.digest), number(one.activation), one.quantile] for one in baseline.images]
    numbers = baseline.model_dump(exclude={"cells", "images"})
    return {**{name: number(value) for name, value in numbers.items()}, "images": images}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """What the verdict rests on: its figures, and each name tested with what it is to the label."""
    figures = {
        "AUC on new images": verdict.auc,
        "strength": verdict.strength,
        "needed": verdict.needed,
        "correlation": verdict.correlation,
        "AUPRC": verdict.auprc,
    }
    return {
        "because": shown(verdict.because),
        "figures": [[name, number(value)] for name, value in figures.items()],
        "tested": [
            [shown(one.concept), one.relation, number(one.auc), number(one.strength), number(one.needed)]
            for one in verdict.tested
        ],
    }


def _candidate(candidate: Candidate, pictures: Pictures) -> dict[str, Any]:
    """Its images strongest first."""

    def strength(image: StoredImage) -> float:
        return -image.activation if math.isfinite(image.activation) else math.inf

    return {
        "concept": shown(candidate.concept),
        "score": number(candidate.score),
        "bound": number(candidate.bound),
        "auc": number(candidate.auc),
        "images": [
            [pictures.get(image.digest), number(image.activation)] for image in sorted(candidate.images, key=strength)
        ],
    }
