"""MILAN (Hernandez et al., ICLR 2022): descriptions of a unit's strongest regions, by pointwise mutual information.

A description d of exemplars E is worth log p(d | E) - weight * log p(d): what says much of these regions and little
of images at large. Both come from the captioner: log p(d | E) is the mean over the unit's exemplars, p(d) the mean
of p(d | image) over a random sample of the probing set, so that no second language model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dnd.api import Captioner, Picture, Unit
from dnd.study import Study


def describe(
    study: Study, captioner: Captioner, key: Mapping[str, object], weight: float, prior: int
) -> dict[Unit, list[tuple[str, float]]]:
    """Every unit's descriptions with their worth, best first. `prior`: images that p(d) is taken from."""
    captions = study.captions()
    candidates = {unit: sorted(set(of_unit)) for unit, of_unit in captions.items()}
    wanted: dict[Picture, set[str]] = {}
    for unit, descriptions in candidates.items():
        for picture, _ in study.exemplars(unit):
            wanted.setdefault(picture, set()).update(descriptions)
    everywhere = {description for descriptions in candidates.values() for description in descriptions}
    sample = study.sample[:prior]
    for picture in sample:
        wanted.setdefault(picture, set()).update(everywhere)
    given = _log_probabilities(study, captioner, key, wanted)
    general = {d: _log_mean([given[picture, d] for picture in sample]) for d in everywhere}
    found = {}
    for unit, descriptions in candidates.items():
        pictures = [picture for picture, _ in study.exemplars(unit)]
        worth = {d: float(np.mean([given[p, d] for p in pictures])) - weight * general[d] for d in descriptions}
        found[unit] = sorted(worth.items(), key=lambda pair: (-pair[1], pair[0]))
    return found


_AT_ONCE = 64
"""Texts of one image in an item: what is lost when a run is killed."""


def _log_probabilities(
    study: Study, captioner: Captioner, key: Mapping[str, object], wanted: Mapping[Picture, set[str]]
) -> dict[tuple[Picture, str], float]:
    """log p(text | image) of every pair; each image is seen once per 64 texts."""
    items: dict[str, tuple[Picture, tuple[str, ...]]] = {}
    for picture, texts in wanted.items():
        ordered = sorted(texts)
        for start in range(0, len(ordered), _AT_ONCE):
            part = tuple(ordered[start : start + _AT_ONCE])
            items[study.key_of(picture.digest, *part)] = (picture, part)

    def work(batch: Sequence[tuple[Picture, tuple[str, ...]]]) -> list[npt.NDArray[np.float32]]:
        answers = captioner.log_probabilities([(picture.open(), texts) for picture, texts in batch])
        return [np.asarray(answer, np.float32) for answer in answers]

    rows = study.arrays("log-probabilities", key, items, captioner, work)
    return {
        (picture, text): float(value)
        for item, (picture, texts) in items.items()
        for text, value in zip(texts, rows[item], strict=True)
    }


def _log_mean(logs: Sequence[float]) -> float:
    values = np.asarray(logs, np.float64)
    return float(values.max() + np.log(np.exp(values - values.max()).mean()))
