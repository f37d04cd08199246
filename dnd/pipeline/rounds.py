"""Stage 4 in rounds: which candidates get synthetic images, and how many, by what the scorer makes of those so far.

"exact" needs a scorer with bounds (`dnd.api.Scorer.bound`): the candidates that may come first get images until none of
the first three can change. The images that are made are those of a run that makes all, and so are the labels.
"economy" does so for the first label alone and takes a few images of the others for all; without bounds it halves the
candidates after each round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dnd.api import N_LABELS, Bound, Scorer, Unit, ranked
from dnd.pipeline.activations import activation_stage
from dnd.pipeline.images import image_stage, repeated, too_few
from dnd.pipeline.known import Known
from dnd.pipeline.scores import bound_stage, score_stage
from dnd.target.hooked import HookedTarget

FEW = 0.2
"""Share of its images on which a second or third label rests in an economy run."""


def make_images(known: Known, hooked: HookedTarget, identity: str, left: Callable[[], list[Unit]]) -> None:
    """Images of the candidates of the units that are `left`, and the target on them; units none of whose candidates has
    images are marked failed. Where bounds decide, also the scores."""
    scorer, _ = known.job.backend("scorer")
    stopping, rounds = known.job.run.images.early_stopping, _Rounds(known, hooked, identity, left)
    for unit in left():
        known.activations[unit] = np.full((len(known.concepts[unit]), known.n_images), np.nan, np.float32)
    if stopping == "exact" and scorer.gives_bounds:
        rounds.by_bound(N_LABELS, known.n_images)
    elif stopping == "economy" and scorer.gives_bounds:
        rounds.by_bound(1, known.n_images)
        rounds.by_bound(N_LABELS, math.ceil(FEW * known.n_images))
    elif stopping == "economy":
        rounds.by_halving()
    else:
        rounds.add({unit: dict.fromkeys(known.concepts[unit], known.n_images) for unit in left()})


def steps(scorer: Scorer, n: int) -> list[int]:
    """Numbers of images at which candidates are looked at again, the last all n."""
    return sorted({min(max(1, math.ceil(share * n - 1e-9)), n) for share in (*scorer.rounds, 1.0)})


@dataclass(frozen=True)
class _Rounds:
    known: Known
    hooked: HookedTarget
    identity: str
    left: Callable[[], list[Unit]]
    """Units that may still get a label."""

    def add(self, wanted: Mapping[Unit, Mapping[str, int]]) -> None:
        """Let units have this many images of candidates of theirs; each image is made once."""
        known, job = self.known, self.known.job
        most: dict[str, int] = {}
        for unit, counts in wanted.items():
            known.counts[unit] = {**known.counts.get(unit, {}), **counts}
            for concept, n in counts.items():
                most[concept] = max(n, most.get(concept, 0))
        new = {concept: range(len(known.images.get(concept, ())), n) for concept, n in most.items()}
        made, missing = image_stage(job, {concept: numbers for concept, numbers in new.items() if numbers})
        known.missing |= missing
        for concept in made:
            self._keep_images(concept, new[concept], made)
        for unit in self.left():
            if not known.candidates(unit):
                self._give_up(unit)
        candidates = {unit: known.concepts[unit] for unit in self.left()}
        made = {concept: images for concept, images in made.items() if concept not in known.missing}
        activation_stage(job, self.hooked, self.identity, candidates, made, known.activations)

    def _keep_images(self, concept: str, wanted: range, made: dict[str, dict[int, str]]) -> None:
        """Add a concept's new images to the known ones, or say why it cannot be scored. Where the generator has no
        more, those there are take the places of those that are missing."""
        known, n = self.known, self.known.n_images
        images = (*known.images.get(concept, ()), *made[concept].values())
        over = len(made[concept]) < len(wanted)
        reason = too_few(images, n) if over or len(images) == n else ""
        if not self.exemplars.isdisjoint(images):
            reason = "its images are exemplars of units: what suggests a concept cannot test it"
        if reason:
            known.missing[concept] = reason
            known.scarce.add(concept)
        if over and concept not in known.missing:
            images = repeated(images, n)
            made[concept] = dict(enumerate(images))
        known.images[concept] = images

    @cached_property
    def exemplars(self) -> frozenset[str]:
        """Digests of those of all units."""
        known = self.known
        return frozenset(digest for unit in known.concepts for digest, _ in known.exemplars.images(unit))

    def _give_up(self, unit: Unit) -> None:
        """A unit none of whose candidates can be scored has failed; or it means nothing that the images show."""
        known, concepts = self.known, self.known.concepts[unit]
        if failed := [known.missing[concept] for concept in concepts if concept not in known.scarce]:
            known.job.failed.setdefault(unit, failed[0])
        else:
            known.unseen[unit] = "; ".join(f"{concept!r}: {known.missing[concept]}" for concept in concepts)

    def by_bound(self, places: int, enough: int) -> None:
        """Until the first `places` candidates of every unit cannot change, and the first has all its images. `enough`
        images of a candidate that is not the first count as all."""
        known, job = self.known, self.known.job
        units, at = self.left(), sorted({enough, *steps(job.backend("scorer")[0], known.n_images)})
        while units:
            bounds = bound_stage(job, units, lambda unit: known.evidence(unit, known.candidates(unit), enough=enough))
            wanted = {unit: self._wanted(unit, own, places, at) for unit, own in bounds.items()}
            for unit, own in bounds.items():
                self._keep(unit, own)
            if not any(wanted.values()):
                break
            before = set(known.missing)
            self.add({unit: counts for unit, counts in wanted.items() if counts})
            lost = set(known.missing) - before
            units = [unit for unit in self.left() if wanted.get(unit) or lost & set(known.concepts[unit])]

    def _wanted(self, unit: Unit, bounds: Sequence[Bound], places: int, at: Sequence[int]) -> dict[str, int]:
        """Candidates whose images to come matter to the unit, and how many it wants of them now."""
        candidates = self.known.candidates(unit)
        first, *others = ranked([bound.score for bound in bounds])[:places]
        needed = [
            candidates[place] for place in (first, *(place for place in others if self._matters(unit, bounds[place])))
        ]
        there = {concept: len(self.known.images_of(unit, concept)) for concept in needed}
        return {concept: next(n for n in at if n > so_far) for concept, so_far in there.items() if so_far < at[-1]}

    def _matters(self, unit: Unit, bound: Bound) -> bool:
        """Whether images of one that does not come first may change a label; to refine labels, all that add something
        are compared."""
        return bound.open or (bound.score > 0 and self.known.job.run.refines(unit))

    def _keep(self, unit: Unit, bounds: Sequence[Bound]) -> None:
        """The scores of those that come first and cannot change; the others' bounds."""
        candidates, settled = self.known.candidates(unit), dict[str, float]()
        for place in ranked([bound.score for bound in bounds])[:N_LABELS]:
            if bounds[place].open:
                break
            settled[candidates[place]] = bounds[place].score
        self.known.scores[unit] = settled
        self.known.bounds[unit] = {
            concept: bound.score for concept, bound in zip(candidates, bounds, strict=True) if concept not in settled
        }

    def by_halving(self) -> None:
        """After each round the better half of a unit's candidates goes on, by their scores on as many images each."""
        known, job = self.known, self.known.job
        alive = {unit: list(known.concepts[unit]) for unit in self.left()}
        for n in steps(job.backend("scorer")[0], known.n_images):
            self.add({unit: dict.fromkeys(alive[unit], n) for unit in self.left()})
            for unit, concepts in alive.items():
                alive[unit] = [concept for concept in concepts if concept not in known.missing]
                if not alive[unit]:
                    self._give_up(unit)
            several = [unit for unit in self.left() if len(alive[unit]) > 1 and n < known.n_images]
            scores = score_stage(job, several, lambda unit, n=n: known.evidence(unit, alive[unit], n))  # type: ignore[misc]
            for unit, own in scores.items():
                best = sorted(ranked(own)[: math.ceil(len(own) / 2)])
                alive[unit] = [alive[unit][place] for place in best]
