"""Stages 2 to 5 in order, and from what they found each unit's label."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain

import numpy as np

from dnd.api import Evidence, Label, Unit, auc
from dnd.config.run import UNUSED
from dnd.pipeline.activations import activations_of
from dnd.pipeline.captions import caption_stage
from dnd.pipeline.choose import choose
from dnd.pipeline.concepts import concept_stage
from dnd.pipeline.controls import Controls, control_auc, control_labels
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.job import Job
from dnd.pipeline.known import Known
from dnd.pipeline.refine import Tried, better_candidates, tried
from dnd.pipeline.rounds import make_images
from dnd.pipeline.scores import score_stage
from dnd.results.unit import Candidate, Dropped, Exemplar, StoredImage, UnitResult
from dnd.target.hooked import HookedTarget


def label_units(
    job: Job, hooked: HookedTarget, identity: str, exemplars: ExemplarResult, units: Sequence[Unit]
) -> Iterator[UnitResult]:
    """Stages 2 to 5 over the exemplars of all units, then each unit's label, in the order of `units`."""
    job.failed.update((unit, f"exemplars: {reason}") for unit, reason in exemplars.failed.items())
    too_few = {unit: reason for unit in units if (reason := exemplars.too_few(unit))}
    known = Known(job, exemplars, tuple(map(job.store.picture, exemplars.sample)))

    def left() -> list[Unit]:
        """Those that still may get a label."""
        return [unit for unit in units if unit not in too_few and unit not in job.failed and unit not in known.unseen]

    has_captions = job.run.captioner.name != UNUSED
    with job.lending("captioner", "summarizer") if has_captions else nullcontext():
        if has_captions:
            known.captions = caption_stage(job, exemplars, left())
        known.concepts = concept_stage(job, exemplars, left(), known.captions)
    found = _test(known, hooked, identity, left)
    for _ in range(job.run.rounds):
        if (better := better_candidates(known, found)) is None:
            break
        known = better
        found = _test(known, hooked, identity, left)
    known.meanings = {unit: one.meanings() for unit, one in found.items()}
    if known.n_images:
        known.controls = _controls(known, hooked, identity, left())
    known.unseen |= too_few
    return (_result(known, unit) for unit in units)


def _test(known: Known, hooked: HookedTarget, identity: str, left: Callable[[], list[Unit]]) -> dict[Unit, Tried]:
    """Images of the candidates, what the target makes of them, and the scores; what there is to refine."""
    job = known.job
    small = known.n_images and job.is_small(job.backend("generator")[0])
    with job.keeping("scorer"), job.keeping("generator") if small else nullcontext():
        if known.n_images:
            make_images(known, hooked, identity, left)
        if not known.bounds:
            scores = score_stage(job, left(), lambda unit: known.evidence(unit, known.complete(unit)))
            known.scores = {unit: dict(zip(known.complete(unit), own, strict=True)) for unit, own in scores.items()}
        refined = [unit for unit in left() if job.run.refines(unit)]
        return tried(known, refined) if refined else {}


def _controls(known: Known, hooked: HookedTarget, identity: str, units: Sequence[Unit]) -> Controls:
    """What the units make of the images of each other's labels: all of these were made, in every kind of rounds."""
    firsts = [max(scores, key=lambda one: scores[one]) for unit in units if (scores := known.scores.get(unit))]
    images = {label: known.images[label] for label in control_labels(firsts, known.job.run.seed)}
    digests = list(dict.fromkeys(chain.from_iterable(images.values())))
    seen = activations_of(known.job, hooked, identity, digests, units)
    pool = {label: [seen[one] for one in digests if one in seen] for label, digests in images.items()}
    whole = {label: np.stack(rows) for label, rows in pool.items() if len(rows) == known.n_images}
    return Controls(whole, units)


def _control_aucs(known: Known, unit: Unit, evidence: Evidence) -> dict[str, float]:
    """By candidate that has all its images; empty where too few labels of other units serve."""
    controls = known.controls.of(unit, known.concepts[unit]) if known.controls else None
    if controls is None:
        return {}
    rows = dict(zip(evidence.concepts, evidence.activations, strict=True))
    return {concept: control_auc(row, controls) for concept, row in rows.items() if np.isfinite(row).all()}


def _result(known: Known, unit: Unit) -> UnitResult:
    unseen, failed = known.unseen.get(unit), known.job.failed.get(unit)
    if unseen is None and failed is None:
        label, candidates = _judged(known, unit)
    else:
        label = Label(unit, "failed", (), failed) if failed else Label(unit, "uninterpretable", (), unseen or "")
        candidates = tuple(Candidate(concept=concept) for concept in known.concepts.get(unit, ()))
    lost = [concept for concept in known.concepts.get(unit, ()) if concept in known.missing]
    dropped = () if failed else tuple(Dropped(concept=one, reason=known.missing[one]) for one in lost)
    dropped += tuple(
        Dropped(concept=one, reason=f"{better!r} says it better")
        for one, better in known.superseded.get(unit, {}).items()
    )
    return UnitResult.of(
        label,
        exemplars=captioned(known.exemplars.exemplars[unit], known.captions.get(unit, ())),
        candidates=candidates,
        baseline=known.exemplars.baseline(unit),
        density=known.exemplars.density(unit),
        dropped=dropped,
        meanings=known.meanings.get(unit, ()) if label.status == "labelled" else (),
        history=known.history.get(unit, ()),
    )


def captioned(exemplars: Sequence[Exemplar], captions: Sequence[str | None]) -> tuple[Exemplar, ...]:
    """The exemplars with their captions, where there are any."""
    if not captions:
        return tuple(exemplars)
    pairs = zip(exemplars, captions, strict=True)
    return tuple(exemplar.model_copy(update={"caption": caption}) for exemplar, caption in pairs)


def _judged(known: Known, unit: Unit) -> tuple[Label, tuple[Candidate, ...]]:
    labels, scores, bounds = known.job.run.labels, known.scores[unit], known.bounds.get(unit, {})
    evidence = known.evidence(unit, known.candidates(unit))
    seen = [row[: len(own)] for row, own in zip(evidence.activations, evidence.images, strict=True)]
    aucs = {
        concept: auc(row, evidence.sample_activations)
        for concept, row in zip(evidence.concepts, seen, strict=True)
        if row.size
    }
    control_aucs = _control_aucs(known, unit, evidence)
    label = choose(
        unit,
        scores,
        aucs,
        control_aucs,
        min_auc=labels.min_auc,
        min_score=labels.min_score,
        calibration=labels.calibrated,
        min_confidence=labels.min_confidence,
        first=known.meanings.get(unit, ()),
    )
    candidates = tuple(
        Candidate(
            concept=concept,
            score=scores.get(concept),
            bound=bounds.get(concept),
            auc=aucs.get(concept),
            control_auc=control_aucs.get(concept),
            images=tuple(
                StoredImage(digest=digest, activation=value)
                for digest, value in dict(zip((one.digest for one in images), row.tolist(), strict=True)).items()
            ),
        )
        for concept, images, row in zip(evidence.concepts, evidence.images, seen, strict=True)
    )
    return label, candidates
