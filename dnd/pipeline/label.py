"""Stages 2 to 5 in order, and from what they found each unit's label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dnd.api import Evidence, Label, Picture, Unit, auc
from dnd.config.run import UNUSED
from dnd.pipeline.activations import activation_stage
from dnd.pipeline.captions import caption_stage
from dnd.pipeline.choose import choose
from dnd.pipeline.concepts import concept_stage
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.images import image_stage
from dnd.pipeline.job import Job
from dnd.pipeline.scores import score_stage
from dnd.results.unit import Candidate, Dropped, Exemplar, StoredImage, UnitResult
from dnd.target.hooked import HookedTarget


@dataclass
class Known:
    """What the stages have found so far."""

    job: Job
    exemplars: ExemplarResult
    sample: tuple[Picture, ...]
    """Of the probing set; the same for every unit."""
    captions: Mapping[Unit, tuple[str | None, ...]] = field(default_factory=dict)
    """Of each exemplar, None where it failed; empty without a captioner."""
    concepts: Mapping[Unit, tuple[str, ...]] = field(default_factory=dict)
    candidates: Mapping[Unit, tuple[str, ...]] = field(default_factory=dict)
    """The concepts but for those without images."""
    images: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By concept, digests; empty without a generator."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Concepts without images, and why."""
    activations: Mapping[Unit, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(n_candidates, n_images); empty without a generator."""
    scores: Mapping[Unit, tuple[float, ...]] = field(default_factory=dict)

    def evidence(self, unit: Unit) -> Evidence:
        """The scorer's input for a unit."""
        store, concepts, exemplars = self.job.store, self.candidates[unit], self.exemplars.images(unit)
        activations = self.activations.get(unit)
        return Evidence(
            unit=unit,
            exemplars=tuple(store.picture(digest) for digest, _ in exemplars),
            exemplar_activations=np.array([activation for _, activation in exemplars], np.float32),
            concepts=concepts,
            images=tuple(tuple(map(store.picture, self.images.get(concept, ()))) for concept in concepts),
            activations=np.zeros((len(concepts), 0), np.float32) if activations is None else activations,
            sample=self.sample,
            sample_activations=self.exemplars.sample_activations(unit),
        )


def label_units(
    job: Job, hooked: HookedTarget, identity: str, exemplars: ExemplarResult, units: Sequence[Unit]
) -> Iterator[UnitResult]:
    """Stages 2 to 5 over the exemplars of all units, then each unit's label, in the order of `units`."""
    job.failed.update((unit, f"exemplars: {reason}") for unit, reason in exemplars.failed.items())
    too_few = {unit: reason for unit in units if (reason := exemplars.too_few(unit))}
    known = Known(job, exemplars, tuple(map(job.store.picture, exemplars.sample)))

    def left() -> list[Unit]:
        """Those that still may get a label."""
        return [unit for unit in units if unit not in too_few and unit not in job.failed]

    if job.run.captioner.name != UNUSED:
        known.captions = caption_stage(job, exemplars, left())
    known.concepts = known.candidates = concept_stage(job, exemplars, left(), known.captions)
    if job.run.generator.name != UNUSED:
        _generate(known, hooked, identity)
    known.scores = score_stage(job, left(), known.evidence)
    return (_abstained(known, unit, too_few[unit]) if unit in too_few else _result(known, unit) for unit in units)


def _generate(known: Known, hooked: HookedTarget, identity: str) -> None:
    """Images of all concepts, and the target on them; units none of whose concepts has images are marked failed."""
    job = known.job
    known.images, known.missing = image_stage(job, (one for concepts in known.concepts.values() for one in concepts))
    if known.missing:
        known.candidates = {
            unit: tuple(one for one in concepts if one not in known.missing)
            for unit, concepts in known.concepts.items()
        }
    job.failed.update(
        (unit, known.missing[known.concepts[unit][0]]) for unit, own in known.candidates.items() if not own
    )
    wanted = {unit: concepts for unit, concepts in known.candidates.items() if concepts}
    known.activations = activation_stage(job, hooked, identity, wanted, known.images)


def _abstained(known: Known, unit: Unit, reason: str) -> UnitResult:
    label = Label(unit, "uninterpretable", (), reason)
    exemplars = known.exemplars
    return UnitResult.of(label, exemplars=exemplars.exemplars[unit], baseline=exemplars.baseline(unit))


def _result(known: Known, unit: Unit) -> UnitResult:
    reason = known.job.failed.get(unit)
    if reason is None:
        label, candidates, dropped = _judged(known, unit)
    else:
        label, dropped = Label(unit, "failed", (), reason), ()
        candidates = tuple(Candidate(concept=concept) for concept in known.concepts.get(unit, ()))
    return UnitResult.of(
        label,
        exemplars=captioned(known.exemplars.exemplars[unit], known.captions.get(unit, ())),
        candidates=candidates,
        baseline=known.exemplars.baseline(unit),
        dropped=dropped,
    )


def captioned(exemplars: Sequence[Exemplar], captions: Sequence[str | None]) -> tuple[Exemplar, ...]:
    """The exemplars with their captions, where there are any."""
    if not captions:
        return tuple(exemplars)
    pairs = zip(exemplars, captions, strict=True)
    return tuple(exemplar.model_copy(update={"caption": caption}) for exemplar, caption in pairs)


def _judged(known: Known, unit: Unit) -> tuple[Label, tuple[Candidate, ...], tuple[Dropped, ...]]:
    labels, evidence, scores = known.job.run.labels, known.evidence(unit), known.scores[unit]
    aucs = [auc(row, evidence.sample_activations) for row in evidence.activations if row.size]
    label = choose(
        unit,
        evidence.concepts,
        scores,
        aucs,
        min_auc=labels.min_auc,
        min_score=labels.min_score,
        calibration=labels.calibrated,
        min_confidence=labels.min_confidence,
    )
    candidates = tuple(
        Candidate(
            concept=concept,
            score=scores[place],
            auc=aucs[place] if aucs else None,
            images=tuple(
                StoredImage(digest=picture.digest, activation=float(value))
                for picture, value in zip(evidence.images[place], evidence.activations[place], strict=True)
            ),
        )
        for place, concept in enumerate(evidence.concepts)
    )
    lost = [concept for concept in known.concepts[unit] if concept in known.missing]
    return label, candidates, tuple(Dropped(concept=one, reason=known.missing[one]) for one in lost)
