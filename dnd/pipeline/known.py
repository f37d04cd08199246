"""What the stages have found so far, and the evidence that a scorer gets of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dnd.api import Evidence, Picture, Unit
from dnd.config.run import UNUSED
from dnd.pipeline.controls import Controls
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.job import Job


@dataclass
class Known:
    job: Job
    exemplars: ExemplarResult
    sample: tuple[Picture, ...]
    """Of the probing set; the same for every unit."""
    captions: Mapping[Unit, tuple[str | None, ...]] = field(default_factory=dict)
    """Of each exemplar, None where it failed; empty without a captioner."""
    concepts: Mapping[Unit, tuple[str, ...]] = field(default_factory=dict)
    images: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By concept, digests of the images made so far, in the order of their seeds, repeated where there are fewer than
    wanted; empty without a generator."""
    counts: dict[Unit, dict[str, int]] = field(default_factory=dict)
    """How many of a candidate's images a unit needed: it knows of no more, so that no other unit changes its answer."""
    missing: dict[str, str] = field(default_factory=dict)
    """Concepts that cannot be scored for want of images, and why."""
    scarce: set[str] = field(default_factory=set)
    """Those of them of which nothing failed: there are too few."""
    unseen: dict[Unit, str] = field(default_factory=dict)
    """Units all of whose concepts are scarce, and why they are uninterpretable."""
    activations: dict[Unit, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(n_concepts, n_images), NaN for images not made; empty without a generator."""
    scores: dict[Unit, dict[str, float]] = field(default_factory=dict)
    """By candidate, for those that were judged."""
    bounds: dict[Unit, dict[str, float]] = field(default_factory=dict)
    """What other candidates could score at best; empty unless the scorer gives bounds."""

    controls: Controls | None = None
    """None without a generator."""
    superseded: Mapping[Unit, Mapping[str, str]] = field(default_factory=dict)
    """Candidates that are left out for a better one, and which (dnd/pipeline/refine.py)."""
    history: Mapping[Unit, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """What explained the unit before each round of refinement."""
    meanings: Mapping[Unit, tuple[str, ...]] = field(default_factory=dict)
    """What explains it after the last; empty without refinement."""

    @property
    def asked(self) -> Mapping[Unit, frozenset[str]]:
        """All that was ever a candidate."""
        return {unit: frozenset((*own, *self.superseded.get(unit, ()))) for unit, own in self.concepts.items()}

    @property
    def n_images(self) -> int:
        """Of a candidate, when none is left out."""
        return 0 if self.job.run.generator.name == UNUSED else self.job.run.images.n

    def candidates(self, unit: Unit) -> tuple[str, ...]:
        """Its concepts but for those without images."""
        return tuple(concept for concept in self.concepts[unit] if concept not in self.missing)

    def complete(self, unit: Unit) -> tuple[str, ...]:
        """Its candidates that have all their images."""
        return tuple(c for c in self.candidates(unit) if len(self.images_of(unit, c)) == self.n_images)

    def images_of(self, unit: Unit, concept: str) -> tuple[str, ...]:
        """Digests of a candidate's images, as far as the unit needed them."""
        return self.images.get(concept, ())[: self.counts.get(unit, {}).get(concept, 0)]

    def evidence(
        self, unit: Unit, concepts: Sequence[str], n_images: int | None = None, enough: int | None = None
    ) -> Evidence:
        """The scorer's input for some candidates of a unit, with their first `n_images`, or all there are.

        From `enough` images on, those of a candidate are repeated until they are as many as it can have."""
        store, exemplars = self.job.store, self.exemplars.images(unit)
        n = self.n_images if n_images is None else n_images
        rows = [self.concepts[unit].index(concept) for concept in concepts]
        images = [self.images_of(unit, concept)[:n] for concept in concepts]
        activations = self.activations[unit][rows, :n] if n else np.zeros((len(rows), 0), np.float32)
        for place, own in enumerate(images):
            activations[place, len(own) :] = np.nan
            if enough is not None and enough <= len(own) < n:
                again = np.arange(n) % len(own)
                images[place], activations[place] = tuple(own[i] for i in again), activations[place, again]
        return Evidence(
            unit=replace(unit),  # not the one that all else hangs on
            exemplars=tuple(store.picture(digest) for digest, _ in exemplars),
            exemplar_activations=np.array([activation for _, activation in exemplars], np.float32),
            concepts=tuple(concepts),
            images=tuple(tuple(map(store.picture, own)) for own in images),
            activations=activations,
            sample=self.sample,
            sample_activations=self.exemplars.sample_activations(unit),
        )
