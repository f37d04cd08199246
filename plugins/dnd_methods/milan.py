"""The method "milan" (Hernandez et al., ICLR 2022): descriptions of exemplars, by pointwise mutual information.

A description d of exemplars E is worth log p(d | E) - weight * log p(d): what says much of these regions and little
of images at large. Both come from the captioner: log p(d | E) is the mean over the unit's exemplars, p(d) the mean
of p(d | image) over a random sample of the probing set, so that no second language model is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd.api import Captioner, Picture, Unit
from dnd_methods.labels import AT_MOST, label

if TYPE_CHECKING:
    from dnd.api import Study


class MilanConfig(api.Config):
    weight: float = pydantic.Field(0.2, ge=0)
    """Of log p(description), which is taken off log p(description | exemplars)."""
    prior_images: int = pydantic.Field(16, ge=1)
    """Random probing images that p(description) is taken from."""


class Milan(api.Method):
    """Captions of the exemplars and their active regions, ranked by pointwise mutual information."""

    name = "milan"
    uses = ("captioner",)
    Config = MilanConfig

    def describe(self, study: Study) -> Iterator[api.Label]:
        captioner, key = study.backend("captioner")
        if not captioner.gives_probabilities:
            raise api.UsageError(
                f"milan ranks captions by their probability, and the captioner {captioner.name!r} gives none",
                "Choose a captioner with `log_probabilities`, such as a BLIP-2.",
            )
        found = describe(study, captioner, {"captioner": key}, self.config.weight, self.config.prior_images)
        for unit in study.units:
            if unit in found:
                yield label(unit, found[unit][:AT_MOST], None, "")
            else:
                yield api.Label(unit, "failed", (), study.failed[unit])


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
