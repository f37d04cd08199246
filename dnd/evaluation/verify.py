"""Is each label right? It is tested on images that did not choose it, beside broader, narrower and other names.

Of every unit's first label, of the names it becomes without its first or last word, and of the unit's other candidates,
images are generated with seeds of their own. A name activates the unit where the unit's activations tell its images
from those of other units' labels. From that follows the verdict (`judge`):

- not driven: the label's images hardly activate the unit;
- too broad: those of a narrower name do more, and it is seen on what activates the unit most;
- too narrow: those of a broader name do as much, or it is seen where the label is not;
- one of several: those of another candidate do as much, or the label is not seen on much of what activates the unit;
- verified: none of these.

Broader and narrower is what the words say ("star" and "red star"), or CLIP: a name that fits the label's images, where
the label does not fit its own, is broader. Beside the verdict stands how much of the unit the label explains: on
probing images that chose nothing, how CLIP's likeness of image and label goes with the activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dnd.api import Unit, auc, derive_seed
from dnd.errors import UsageError
from dnd.evaluation import metrics
from dnd.evaluation.clip import Clip, clip_of
from dnd.evaluation.evidence import Evidence, Floats, gather, relation
from dnd.evaluation.reopen import Opened, open_run
from dnd.results.run import RunFolder
from dnd.results.unit import UnitResult
from dnd.results.verdict import Neighbour, Verdict, Word
from dnd.results.write import write_results
from dnd.runtime.progress import Meter
from dnd.store.locks import only_here

DRIVEN, CLEARLY = 0.7, 0.85
"""AUC from which images activate a unit, and from which nearly all of them do."""
AS_MUCH, HARDLY = 0.8, 0.25
"""Strength of a name, as a share of another's, from which it activates the unit as much, and up to which hardly."""
NEEDED = 0.9
"""Share of what activates the unit most on which a name is seen that the unit needs."""
CANDIDATES = 3
"""Other candidates that are tested at most, the best first."""
ACTIVE = 0.05
"""Share of the probing images, the strongest, on which a unit is taken to be active."""
OTHERS = 40
"""Other units' labels whose images a unit is tested against at most."""


def names_of(record: UnitResult) -> list[str]:
    """What is tested of a unit: its label, that without its first or last word, its other best candidates."""
    label = record.labels[0].concept
    words = label.split()
    shorter = [" ".join(words[1:]), " ".join(words[:-1])] if len(words) > 1 else []
    ranked = sorted(record.candidates, key=lambda one: -(one.score if one.score is not None else -np.inf))
    others = [one.concept for one in ranked if one.concept not in (label, *shorter)]
    return list(dict.fromkeys([label, *shorter, *others[:CANDIDATES]]))


def verify_run(
    folder: Path,
    *,
    images: int,
    meter: Meter,
    clip: str | None = None,
    generator: str | None = None,
    device: str | None = None,
) -> dict[Unit, Verdict]:
    """Verdicts on the labels of a finished run, which its tables have from then on. UsageError where it cannot be
    opened again, or has no label."""
    with only_here(folder):
        return _verify_run(folder, images, meter, clip, generator, device)


def _verify_run(
    folder: Path, images: int, meter: Meter, clip: str | None, generator: str | None, device: str | None
) -> dict[Unit, Verdict]:
    run = RunFolder(folder)
    records = list(run.records())
    if not any(record.status == "labelled" for record in records):
        raise UsageError(f"none of the {len(records)} units of {folder} has a label", "There is nothing to verify.")
    opened = open_run(folder, images=images, meter=meter, generator=generator, device=device)
    name = clip or clip_of(opened.job.run)
    found = verify(opened, records, Clip(name, opened.job.run.device) if name else None)
    write_results(folder, (one.model_copy(update={"verdict": found.get(one.unit)}) for one in run.records()))
    return found


def verify(opened: Opened, records: Sequence[UnitResult], clip: Clip | None) -> dict[Unit, Verdict]:
    """A verdict on the first label of every unit that has one, in their order."""
    labelled = [record for record in records if record.status == "labelled"]
    names = {record.unit: names_of(record) for record in labelled}
    found = gather(opened, list(dict.fromkeys(name for own in names.values() for name in own)), labelled, clip)
    labels = list(dict.fromkeys(own[0] for own in names.values() if own[0] in found.images))
    return {one.unit: _verdict(found, one, names[one.unit], labels, opened.job.run.seed) for one in labelled}


def _verdict(found: Evidence, record: UnitResult, names: Sequence[str], labels: Sequence[str], seed: int) -> Verdict:
    unit, label = record.unit, names[0]
    if label in found.missing:
        reason = found.missing[label]
        return Verdict(concept=label, word="not tested", because=reason)
    values = found.activations[unit.layer][:, unit.index]
    if broken := int((~np.isfinite(values)).sum()):  # which would rank above all others
        reason = f"its activation is not finite on {broken} of the images"
        return Verdict(concept=label, word="not tested", because=reason)
    others = _others(names, labels, derive_seed(seed, "verify", unit))
    ordinary = found.of(others) or list(range(found.random.start, found.random.stop))
    own, random = found.of([label]), values[found.random]

    def strength(name: str) -> float:
        return float(np.median(values[found.of([name])]) - np.median(random))

    tested = tuple(
        Neighbour(
            concept=name,
            relation=relation(found, label, name, ordinary),
            auc=auc(values[found.of([name])], values[ordinary]),
            strength=strength(name),
            needed=found.seen(name, record, ordinary),
        )
        for name in names[1:]
        if name in found.images
    )
    drive = auc(values[own], values[ordinary])
    needed = found.seen(label, record, ordinary)
    word, because = judge(drive, strength(label), needed, tested)
    return Verdict(
        word=word,
        concept=label,
        because=because,
        n_images=len(own),
        auc=drive,
        auc_random=auc(values[own], random),
        strength=strength(label),
        needed=needed,
        tested=tested,
        **(_explained(found.likeness[label][found.random], random) if found.likeness else {}),
    )


def judge(drive: float, strength: float, needed: float | None, tested: Sequence[Neighbour]) -> tuple[Word, str]:
    """The verdict, and the name that decided it. `drive` is the label's AUC, `needed` the share of what activates the
    unit most on which it is seen; None where that is not known."""

    def is_needed(one: Neighbour) -> bool:
        return one.needed is not None and one.needed >= NEEDED

    clearly, misses = [one for one in tested if one.auc >= CLEARLY], needed is not None and needed < NEEDED
    narrower = [one for one in clearly if one.relation == "narrower" and strength <= HARDLY * one.strength]
    narrower = [one for one in narrower if drive < CLEARLY or is_needed(one)]
    if narrower:
        return "too broad", max(narrower, key=lambda one: one.auc).concept
    if drive < DRIVEN:
        return "not driven", ""
    as_much = [
        one
        for one in clearly
        if one.strength >= AS_MUCH * strength or (one.relation == "broader" and misses and is_needed(one))
    ]
    strongest = {one.relation: one.concept for one in sorted(as_much, key=lambda one: one.strength)}
    if "broader" in strongest:
        return "too narrow", strongest["broader"]
    if "other" in strongest or misses:
        return "one of several", strongest.get("other", "")
    return "verified", ""


def _others(names: Sequence[str], labels: Sequence[str], seed: int) -> list[str]:
    """Other units' labels that share no word with this unit's, and are none of the names tested."""
    own = set(names[0].split())
    apart = [label for label in labels if label not in names and own.isdisjoint(label.split())]
    if len(apart) <= OTHERS:
        return apart
    return [apart[i] for i in np.random.default_rng(seed).choice(len(apart), OTHERS, replace=False)]


def _explained(likeness: Floats, activations: Floats) -> dict[str, float]:
    """How the likeness of the label (n,) goes with the activation on the held-out probing images (n,)."""
    x, y, weights = likeness.astype(np.float64), activations.astype(np.float64), np.ones(len(activations))
    active = ((y >= np.quantile(y, 1 - ACTIVE)) & (y > y.min())).astype(np.float64)
    return {
        "correlation": float(metrics.correlation(x, y, weights)),
        "auprc": float(metrics.inverse_auprc(active, x, weights)),
        "auprc_chance": float(active.mean()),
    }
