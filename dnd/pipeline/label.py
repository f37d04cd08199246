"""Stages 2 to 5 in order, and from what they found each unit's label."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dnd.api import Evidence, Label, Picture, SummaryRequest, Unit, auc
from dnd.config.calibration import Calibration
from dnd.config.run import UNUSED
from dnd.pipeline.activations import activation_stage
from dnd.pipeline.captions import caption_stage
from dnd.pipeline.choose import choose
from dnd.pipeline.concepts import concept_stage, summary_request
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.images import image_stage
from dnd.pipeline.job import Job
from dnd.pipeline.scores import score_stage
from dnd.results.unit import Finding, Findings
from dnd.store.ledger import Ledger
from dnd.target.hooked import HookedTarget

SILENT = "it responds to no probing image differently from another"


@dataclass
class Known:
    """What is known of every unit so far; each answer is looked up when it is asked for."""

    job: Job
    result: ExemplarResult
    silent: frozenset[Unit]
    sample: tuple[Picture, ...]
    """Of the probing set; the same for every unit."""
    captions_of: Callable[[Unit], tuple[str, ...]] = lambda unit: ()
    """Of each exemplar; empty without captions."""
    candidates: Ledger | None = None
    """Concepts by unit."""
    drawn: Ledger | None = None
    """By concept: digests of its images; None where none are drawn."""
    lacking: Mapping[str, str] = field(default_factory=dict)
    """Concepts without images, and why."""
    activations_of: Callable[[Unit], npt.NDArray[np.float32]] | None = None
    scores_of: Callable[[Unit], tuple[float, ...]] = lambda unit: ()

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        """Those that still may get a label."""
        return [unit for unit in units if unit not in self.silent and unit not in self.job.failed]

    def answers(self, unit: Unit) -> tuple[str, ...]:
        """Its candidates."""
        found: tuple[str, ...] | None = None if self.candidates is None else self.candidates.get(str(unit))
        return found or ()

    def judged(self, unit: Unit) -> tuple[str, ...]:
        """Its candidates but for those that could not be drawn."""
        return tuple(sys.intern(concept) for concept in self.answers(unit) if concept not in self.lacking)

    def request(self, unit: Unit) -> SummaryRequest:
        captions = self.captions_of(unit)
        pictures = () if captions else tuple(self.job.store.picture(digest) for digest, _ in self.result.images(unit))
        return summary_request(self.job, unit, captions, pictures)

    def evidence(self, unit: Unit) -> Evidence:
        store, concepts, exemplars = self.job.store, self.judged(unit), self.result.images(unit)
        digests = [() if self.drawn is None else self.drawn[concept] for concept in concepts]
        return Evidence(
            unit=unit,
            exemplars=tuple(store.picture(digest) for digest, _ in exemplars),
            exemplar_activations=np.array([activation for _, activation in exemplars], np.float32),
            concepts=concepts,
            images=tuple(tuple(store.picture(one) for one in own) for own in digests),
            activations=self.activations_of(unit) if self.activations_of else np.zeros((len(concepts), 0), np.float32),
            sample=self.sample,
            sample_activations=self.result.sample_activations(unit),
        )


def find_labels(
    job: Job, hooked: HookedTarget, identity: str, result: ExemplarResult, units: Sequence[Unit]
) -> Findings:
    """Stages 2 to 5 over the exemplars of all units, then each unit's label, in the order of `units`."""
    job.failed.update((unit, f"exemplars: {reason}") for unit, reason in result.failed.items())
    silent = frozenset(unit for unit in units if result.is_silent(unit))
    known = Known(job, result, silent, tuple(job.store.picture(digest) for digest in result.sample))
    if job.run.captioner.name != UNUSED:
        known.captions_of = caption_stage(job, result, known.left(units))
    known.candidates = concept_stage(job, known.left(units), known.request)
    if job.run.generator.name != UNUSED:
        _draw(known, hooked, identity, units)
    known.scores_of = score_stage(job, known.left(units), known.evidence)
    calibration = job.run.labels.calibrated
    return Findings(units, lambda unit: _finding(known, calibration, unit))


def _draw(known: Known, hooked: HookedTarget, identity: str, units: Sequence[Unit]) -> None:
    """Images of all candidates, and the target on them; units none of whose candidates has images are marked failed."""
    job, left = known.job, known.left(units)
    known.drawn, known.lacking = image_stage(job, (concept for unit in left for concept in known.answers(unit)))
    for unit in left if known.lacking else ():
        if not known.judged(unit):
            job.failed[unit] = known.lacking[known.answers(unit)[0]]
    known.activations_of = activation_stage(job, hooked, identity, known.left(units), known.judged, known.drawn)


def _finding(known: Known, calibration: Calibration | None, unit: Unit) -> Finding:
    result, job = known.result, known.job
    if unit in known.silent:
        label = Label(unit, "uninterpretable", (), SILENT)
        return Finding(label, result.exemplars(unit), sample=result.ordinary(unit))
    captions, answers = known.captions_of(unit), known.answers(unit)
    if unit in job.failed:
        label = Label(unit, "failed", (), job.failed[unit])
        ordinary, exemplars = result.ordinary(unit), result.exemplars(unit)
        return Finding(label, exemplars, captions, answers, sample=ordinary)
    one, scores, least = known.evidence(unit), known.scores_of(unit), job.run.labels
    drives = tuple(auc(row, one.sample_activations) for row in one.activations if row.size)
    label = choose(
        unit,
        one.concepts,
        scores,
        drives,
        min_drive=least.min_auc,
        min_score=least.min_score,
        calibration=calibration,
        min_confidence=least.min_confidence,
    )
    return Finding(
        label,
        result.exemplars(unit),
        captions,
        one.concepts,
        scores,
        drives,
        one.images,
        one.activations if drives else None,
        {concept: known.lacking[concept] for concept in answers if concept in known.lacking},
        result.ordinary(unit),
    )
