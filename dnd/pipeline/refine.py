"""The method "refine": what the target made of a unit's candidates leads to others (after LINE, arXiv 2604.08039).

In each round the scorer says on which exemplars each candidate can be seen. Where the label leaves exemplars out, the
summarizer is given the captions of these, with what the candidates tested so far are worth, and its answers join the
candidates. So do two candidates that captions tell side by side, and the words of all meanings but the first. A name is
left out where a part of it does as much, or where it does hardly anything beside a narrower candidate. A unit is done
when nothing of this changes anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from dnd.api import Evidence, JudgedConcept, Unit, auc
from dnd.pipeline.concepts import concept_stage
from dnd.pipeline.known import Known
from dnd.pipeline.scores import seen_stage

CLEARLY = 0.85
"""AUC from which nearly all images of a concept activate a unit."""
AS_MUCH, HARDLY = 0.5, 0.25
"""Share of another concept's strength from which the weaker images of a concept activate the unit as much, and up to
which the middle one hardly does."""
WEAKER = 0.2
"""Share of its images that activate the unit less than a concept's weaker ones."""
NEEDED = 0.9
"""Share of the exemplars on which a concept is seen that stands for all of them."""
LEAST = 2
"""Exemplars that the label leaves out, with which a further meaning begins."""
_WORD = re.compile(r"[^\W_]+")
MOST_WORDS = 5
"""Of a candidate."""
MOST = 0.5
"""Share of its images from which on a candidate is judged here: of those that cannot be the label the last are not
made."""


@dataclass(frozen=True)
class Tried:
    """A unit's candidates by score, those that have most of their images, with what is known of each."""

    concepts: tuple[str, ...]
    aucs: Mapping[str, float]
    strengths: Mapping[str, float]
    """The activation on the median of its images, above that on the median of the random sample."""
    least: Mapping[str, float]
    """The same of its weaker images."""
    seen: Mapping[str, npt.NDArray[np.bool_]]
    """On each exemplar."""
    min_auc: float = 0.7
    """`labels.min_auc`"""

    def meanings(self) -> tuple[str, ...]:
        """The first candidate, and those that it takes beside it to explain the exemplars: that are seen on most of
        those left out, and share no word with what is there."""
        found, words = [self.concepts[0]], set(self.concepts[0].split())
        driving = [one for one in self.concepts[1:] if self.aucs[one] >= self.min_auc]
        while apart := [one for one in driving if words.isdisjoint(one.split())]:
            rest = ~np.any([self.seen[one] for one in found], axis=0)
            best = max(apart, key=lambda one: ((self.seen[one] & rest).sum(), self.aucs[one]))
            if (self.seen[best] & rest).sum() < LEAST:
                break
            found.append(best)
            words |= set(best.split())
        return tuple(found)

    def worse(self) -> dict[str, str]:
        """Of its meanings those that another candidate says better, and which: a part nearly all of whose images do as
        much; or, of the first, a narrower name that is seen on the exemplars, where the first, of which most images
        show another kind, does hardly anything.

        Strengths are compared, not ranks: images that all activate the unit in full differ by nothing that counts, and
        a generator may draw one kind a little better than others, or more often: half of its stripes are red.
        """
        found, clearly = dict[str, str](), [one for one in self.concepts if self.aucs[one] >= CLEARLY]
        for name in self.meanings():
            words = set(name.split())
            parts = [one for one in clearly if set(one.split()) < words]
            better = [one for one in parts if self.least[one] >= AS_MUCH * self.strengths[name]]
            if name == self.concepts[0]:
                narrower = [one for one in clearly if words < set(one.split()) and self.seen[one].mean() >= NEEDED]
                better += [one for one in narrower if self.strengths[name] <= HARDLY * self.strengths[one]]
            if better:
                found[name] = better[0]
        return found


def tried(known: Known, units: Sequence[Unit]) -> dict[Unit, Tried]:
    """What the scorer and the target say of all that was tested; nothing of units without candidates."""
    enough = math.ceil(MOST * known.n_images)

    def tested(unit: Unit) -> list[str]:
        scores = known.scores.get(unit, {})
        own = [one for one in known.candidates(unit) if len(known.images_of(unit, one)) >= enough]
        return sorted(own, key=lambda one: -scores.get(one, -np.inf))

    evidence: dict[Unit, Evidence] = {
        unit: known.evidence(unit, own, enough=enough) for unit in units if (own := tested(unit))
    }
    seen = seen_stage(known.job, list(evidence), evidence.__getitem__)
    return {
        unit: Tried(
            one.concepts,
            {c: auc(row, one.sample_activations) for c, row in zip(one.concepts, one.activations, strict=True)},
            dict(zip(one.concepts, _strengths(one, 0.5), strict=True)),
            dict(zip(one.concepts, _strengths(one, WEAKER), strict=True)),
            dict(zip(one.concepts, seen[unit], strict=True)),
            known.job.run.labels.min_auc,
        )
        for unit, one in evidence.items()
        if unit in seen
    }


def _strengths(evidence: Evidence, share: float) -> list[float]:
    """By candidate, of the image that so many of its images activate the unit less than."""
    own = np.quantile(evidence.activations, share, axis=1)
    found: list[float] = (own - np.median(evidence.sample_activations)).tolist()
    return found


def better_candidates(known: Known, found: Mapping[Unit, Tried]) -> Known | None:
    """The same units with other candidates, not yet tested; None where nothing is left to improve."""
    job = known.job
    worse = {unit: better for unit, one in found.items() if (better := one.worse())}
    captions, feedback = dict[Unit, tuple[str | None, ...]](), dict[Unit, tuple[JudgedConcept, ...]]()
    for unit, one in found.items():
        left_out = ~np.any([one.seen[concept] for concept in one.meanings()], axis=0)
        if unit not in worse and left_out.sum() >= LEAST and known.captions.get(unit):
            captions[unit] = tuple(
                caption if some else None for caption, some in zip(known.captions[unit], left_out, strict=True)
            )
            feedback[unit] = tuple(JudgedConcept(c, one.aucs[c], float(one.seen[c].mean())) for c in one.concepts)
    failed = dict(job.failed)
    readable = [unit for unit, own in captions.items() if any(own)]
    answers = concept_stage(job, known.exemplars, readable, captions, feedback)
    job.failed.clear()  # a unit whose further question has no answer keeps the label that it has
    job.failed.update(failed)
    more = dict[Unit, list[str]]()
    for unit, one in found.items():
        names = dict.fromkeys((*answers.get(unit, ()), *_side_by_side(known, unit), *_words_of_further(one)))
        if new := [name for name in names if name not in known.asked[unit]]:
            more[unit] = new
    if not worse and not more:
        return None
    concepts, superseded = dict(known.concepts), dict(known.superseded)
    for unit, better in worse.items():
        concepts[unit] = tuple(one for one in concepts[unit] if one not in better)
        superseded[unit] = {**superseded.get(unit, {}), **better}
    for unit, own in more.items():
        concepts[unit] = (*concepts[unit], *own)
    history = {unit: (*known.history.get(unit, ()), one.meanings()) for unit, one in found.items()}
    return Known(job, known.exemplars, known.sample, known.captions, concepts, superseded=superseded, history=history)


def _side_by_side(known: Known, unit: Unit) -> list[str]:
    """Two candidates that stand side by side in at least half of the captions, as one: a language model may name both
    and not see that they belong together."""
    captions = [f" {' '.join(_WORD.findall(text.lower()))} " for text in known.captions.get(unit, ()) if text]
    pairs = [f"{first} {second}" for first, second in permutations(known.concepts[unit], 2)]
    told = [pair for pair in pairs if 2 * sum(f" {pair} " in text for text in captions) >= max(len(captions), 1)]
    return [pair for pair in told if len(pair.split()) <= MOST_WORDS]


def _words_of_further(one: Tried) -> list[str]:
    """The words of meanings beside the first, which few exemplars show: these may be of one kind by chance, such as two
    crops of one image. Without the shortest ("of"), which name nothing."""
    several = [words for name in one.meanings()[1:] if len(words := name.split()) > 1]
    return [word for words in several for word in (words[-1], words[0]) if len(word) > 2]
