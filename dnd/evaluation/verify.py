"""Is each label right? Neighbour on images that did not choose it, beside broader, narrower and other names.

Of every unit's first label, of the names it becomes without its first or last word, and of the unit's other candidates,
images are generated with seeds of their own. A name activates the unit where the unit's activations tell its images
from those of other units' labels. From that follows the verdict (`judge`):

- not driven: the label's images hardly activate the unit;
- too broad: only some do, and those of a narrower name all do;
- too narrow: those of a broader name do so as much;
- one of several: so do those of another candidate, on which the label cannot be seen;
- verified: none of these.

Broader and narrower is what the words say ("star" and "red star"), or CLIP: a name that fits the label's images, where
the label does not fit its own, is broader. Beside the verdict stands how much of the unit the label explains: on
probing images that chose nothing, how CLIP's likeness of image and label goes with the activation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnd.api import Unit, auc, derive_seed
from dnd.errors import UsageError
from dnd.evaluation import metrics
from dnd.evaluation.clip import Clip, clip_of
from dnd.evaluation.images import held_out_images, look_at
from dnd.evaluation.reopen import Opened, open_run
from dnd.pipeline.images import image_stage, too_few
from dnd.results.run import RunFolder
from dnd.results.unit import UnitResult
from dnd.results.verdict import Neighbour, Relation, Verdict, Word
from dnd.results.write import write_results
from dnd.runtime.progress import Meter
from dnd.store.locks import only_here

Floats = npt.NDArray[np.float32]
DRIVEN, CLEARLY = 0.7, 0.85
"""AUC from which images activate a unit, and from which nearly all of them do."""
STRONGER, ALIKE = 0.75, 0.7
"""AUC of one name's images against another's from which they activate the unit more, and up to which they do not."""
FITS = 0.9
"""AUC of CLIP's likeness from which a name fits images: against images of other units' labels."""
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


@dataclass
class Evidence:
    """Fresh images of all names with what the target and CLIP make of them."""

    images: Mapping[str, Sequence[str]]
    """Digests by name."""
    rows: Mapping[str, int]
    """Digest -> its row below; the held-out probing images come last."""
    activations: Mapping[str, Floats]
    """Layer -> (n_images, units)."""
    random: slice
    """Rows of the held-out probing images."""
    likeness: Mapping[str, Floats]
    """Name -> (n_images,) cosines of CLIP; empty without."""
    missing: Mapping[str, str]
    """Names without images, and why."""

    def of(self, names: Sequence[str]) -> list[int]:
        """The rows of their images."""
        return [self.rows[digest] for name in names for digest in self.images[name]]


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
    found = gather(opened, list(dict.fromkeys(name for own in names.values() for name in own)), clip)
    labels = list(dict.fromkeys(own[0] for own in names.values() if own[0] in found.images))
    return {unit: _verdict(found, unit, own, labels, opened.job.run.seed) for unit, own in names.items()}


def gather(opened: Opened, names: Sequence[str], clip: Clip | None) -> Evidence:
    """Generates images of the names, but for those that the run has used, and shows them to the target and to CLIP."""
    n, first = opened.job.run.images.n, opened.images_of_the_run
    made, missing = image_stage(opened.job, {name: range(first, first + n) for name in names})
    used = opened.seen().drawn
    images = {name: [one for one in dict.fromkeys(own.values()) if one not in used] for name, own in made.items()}
    missing |= {name: reason for name, own in images.items() if (reason := too_few(own, n))}
    images = {name: own for name, own in images.items() if name not in missing}
    random, _ = held_out_images(opened)
    digests = list(dict.fromkeys(digest for own in images.values() for digest in own))
    pictures = [*map(opened.job.store.picture, digests), *random]
    likeness: dict[str, Floats] = {}
    if clip is not None:
        likeness = dict(zip(names, clip.texts(names) @ look_at(opened, clip, pictures).T, strict=True))
    rows = {digest: row for row, digest in enumerate(digests)}
    shown = slice(len(digests), len(pictures))
    return Evidence(images, rows, opened.activations(pictures), shown, likeness, missing)


def _verdict(found: Evidence, unit: Unit, names: Sequence[str], labels: Sequence[str], seed: int) -> Verdict:
    label = names[0]
    if label in found.missing:
        reason = found.missing[label]
        return Verdict(concept=label, word="not tested", because=reason)
    values = found.activations[unit.layer][:, unit.index]
    others = _others(names, labels, derive_seed(seed, "verify", unit))
    ordinary = found.of(others) or list(range(found.random.start, found.random.stop))
    own, random = found.of([label]), values[found.random]
    tested = tuple(
        Neighbour(
            concept=name,
            relation=_relation(found, label, name, ordinary),
            auc=auc(values[found.of([name])], values[ordinary]),
            against=auc(values[found.of([name])], values[own]),
        )
        for name in names[1:]
        if name in found.images
    )
    drive = auc(values[own], values[ordinary])
    word, because = judge(drive, tested)
    return Verdict(
        word=word,
        concept=label,
        because=because,
        n_images=len(own),
        auc=drive,
        auc_random=auc(values[own], random),
        tested=tested,
        **(_explained(found.likeness[label][found.random], random) if found.likeness else {}),
    )


def judge(drive: float, tested: Sequence[Neighbour]) -> tuple[Word, str]:
    """The verdict, and the name that decided it. `drive` is the label's AUC."""
    clearly = [one for one in tested if one.auc >= CLEARLY]
    narrower = [one for one in clearly if one.relation == "narrower" and one.against >= STRONGER]
    if drive < CLEARLY and narrower:
        return "too broad", max(narrower, key=lambda one: one.auc).concept
    if drive < DRIVEN:
        return "not driven", ""
    as_much = [one for one in clearly if one.against >= 1 - ALIKE]
    strongest = {one.relation: one.concept for one in sorted(as_much, key=lambda one: one.against)}
    if "broader" in strongest:
        return "too narrow", strongest["broader"]
    if "other" in strongest:
        return "one of several", strongest["other"]
    return "verified", ""


def _others(names: Sequence[str], labels: Sequence[str], seed: int) -> list[str]:
    """Other units' labels that share no word with this unit's, and are none of the names tested."""
    own = set(names[0].split())
    apart = [label for label in labels if label not in names and own.isdisjoint(label.split())]
    if len(apart) <= OTHERS:
        return apart
    return [apart[i] for i in np.random.default_rng(seed).choice(len(apart), OTHERS, replace=False)]


def _relation(found: Evidence, label: str, name: str, ordinary: Sequence[int]) -> Relation:
    """What `name` is to the label, by their words, else by CLIP; "other" where it cannot be told."""
    ours, theirs = set(label.split()), set(name.split())
    if ours == theirs:
        return "same"
    if theirs < ours or ours < theirs:
        return "broader" if theirs < ours else "narrower"
    if not found.likeness:
        return "other"

    def fits(text: str, shown: str) -> bool:
        likeness = found.likeness[text]
        return auc(likeness[found.of([shown])], likeness[ordinary]) >= FITS

    if fits(name, label):
        return "same" if fits(label, name) else "broader"
    return "narrower" if fits(label, name) else "other"


def _explained(likeness: Floats, activations: Floats) -> dict[str, float]:
    """How the likeness of the label (n,) goes with the activation on the held-out probing images (n,)."""
    x, y, weights = likeness.astype(np.float64), activations.astype(np.float64), np.ones(len(activations))
    active = ((y >= np.quantile(y, 1 - ACTIVE)) & (y > y.min())).astype(np.float64)
    return {
        "correlation": float(metrics.correlation(x, y, weights)),
        "auprc": float(metrics.inverse_auprc(active, x, weights)),
        "auprc_chance": float(active.mean()),
    }
