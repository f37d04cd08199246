"""Features as Neuronpedia writes them: a JSON object for each unit, a line each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dnd.config.run import OWN_METHODS
from dnd.results.run import RunFolder, as_mapping
from dnd.results.unit import Baseline, UnitResult
from dnd.text import json_text


def neuronpedia_jsonl(run: RunFolder) -> Iterable[str]:
    """Labels are `explanations`, of which the first is the label itself, scored by AUC and by the run's own score.
    Neuronpedia's `activations` are of tokens, so images have none; the histogram is of the random sample."""
    model, named_by = model_id(run), _named_by(run)
    return (json_text(_feature(record, model, named_by)) + "\n" for record in run.records())


def model_id(run: RunFolder) -> str:
    """The target's own model where its settings name one; else the target."""
    target = as_mapping(run.settings.get("target"))
    return str(target.get("model") or target.get("name") or "unknown")


def _named_by(run: RunFolder) -> str:
    """What gave the names: the model that proposed them, or the method."""
    summarizer, method = as_mapping(run.settings.get("summarizer")), method_of(run)
    return str(summarizer.get("model") or summarizer.get("backend") or method) if method in OWN_METHODS else method


def method_of(run: RunFolder) -> str:
    return str(as_mapping(run.settings.get("method")).get("name", "dnd"))


def _feature(record: UnitResult, model: str, named_by: str) -> dict[str, Any]:
    identity = {"modelId": model, "layer": record.layer, "index": str(record.index)}
    strongest = [one.activation for one in record.exemplars]
    return {
        **identity,
        **({"maxActApprox": max(strongest)} if strongest else {}),
        **({} if record.density is None else {"frac_nonzero": record.density}),
        **(_histogram(record.baseline) if record.baseline else {}),
        "activations": [],
        "explanations": [
            {
                **identity,
                "description": one.concept,
                "typeName": "describe-and-dissect",
                "explanationModelName": named_by,
                "scores": [
                    *(
                        {"explanationScoreTypeName": "auc", "value": c.auc}
                        for c in record.candidates
                        if _judged(c, one)
                    ),
                    {"explanationScoreTypeName": "dnd", "value": round(one.score, 4)},
                ],
            }
            for one in (record.labels if record.status == "labelled" else ())
        ],
    }


def _judged(candidate: Any, one: Any) -> bool:
    return candidate.concept == one.concept and candidate.auc is not None


def _histogram(baseline: Baseline) -> dict[str, list[float]]:
    """Heights are numbers of images, values the middles of the bins."""
    width = (baseline.high - baseline.low) / len(baseline.counts)
    middles = [round(baseline.low + (place + 0.5) * width, 5) for place in range(len(baseline.counts))]
    return {"freq_hist_data_bar_heights": list(map(float, baseline.counts)), "freq_hist_data_bar_values": middles}
