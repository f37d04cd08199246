"""What a verdict rests on: new images of all names that are tested, with what the target and CLIP make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dnd.api import auc
from dnd.evaluation.clip import Clip
from dnd.evaluation.images import held_out_images, look_at
from dnd.evaluation.reopen import Opened
from dnd.pipeline.images import image_stage, too_few
from dnd.results.unit import UnitResult
from dnd.results.verdict import Relation

Floats = npt.NDArray[np.float32]
FITS = 0.9
"""AUC of CLIP's likeness from which a name fits images: against images of other units' labels."""
AS_WELL = 0.25
"""The same against the name's own images, from which it fits others as well as these."""
STRONG = 0.02
"""Share of the held-out probing images, the strongest, that stand for the unit beside its exemplars."""


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
    of_exemplars: Mapping[str, Mapping[str, float]]
    """Name -> the same by digest of an exemplar."""
    missing: Mapping[str, str]
    """Names without images, and why."""

    def of(self, names: Sequence[str]) -> list[int]:
        """The rows of their images."""
        return [self.rows[digest] for name in names for digest in self.images[name]]

    def seen(self, name: str, record: UnitResult, ordinary: Sequence[int]) -> float | None:
        """The share of what activates the unit most, its exemplars and the strongest held-out images, on which CLIP
        sees the name: is nearer to its own images than to ordinary ones. None without CLIP."""
        if not self.likeness:
            return None
        likeness, values = self.likeness[name], self.activations[record.layer][self.random, record.index]
        middle = (np.median(likeness[self.of([name])]) + np.median(likeness[ordinary])) / 2
        strongest = np.argsort(-values, kind="stable")[: round(STRONG * len(values))]
        strongest = strongest[values[strongest] > values.min()]
        exemplars = [self.of_exemplars[name][one.digest] for one in record.exemplars]
        return float((np.concatenate([likeness[self.random][strongest], exemplars]) >= middle).mean())


def gather(opened: Opened, names: Sequence[str], records: Sequence[UnitResult], clip: Clip | None) -> Evidence:
    """Generates images of the names, but for those that the run has used, and shows them to the target and to CLIP,
    which sees the records' exemplars too."""
    n, first = opened.job.run.images.n, opened.images_of_the_run
    made, missing = image_stage(opened.job, {name: range(first, first + n) for name in names})
    used = opened.seen().drawn
    images = {name: [one for one in dict.fromkeys(own.values()) if one not in used] for name, own in made.items()}
    missing |= {name: reason for name, own in images.items() if (reason := too_few(own, n))}
    images = {name: own for name, own in images.items() if name not in missing}
    random, _ = held_out_images(opened)
    digests = list(dict.fromkeys(digest for own in images.values() for digest in own))
    pictures = [*map(opened.job.store.picture, digests), *random]
    exemplars = list(dict.fromkeys(one.digest for record in records for one in record.exemplars))
    likeness, of_exemplars = dict[str, Floats](), dict[str, dict[str, float]]()
    if clip is not None:
        seen = clip.texts(names) @ look_at(opened, clip, [*pictures, *map(opened.job.store.picture, exemplars)]).T
        likeness = dict(zip(names, seen[:, : len(pictures)], strict=True))
        rest = seen[:, len(pictures) :].tolist()
        of_exemplars = {name: dict(zip(exemplars, row, strict=True)) for name, row in zip(names, rest, strict=True)}
    rows = {digest: row for row, digest in enumerate(digests)}
    shown = slice(len(digests), len(pictures))
    return Evidence(images, rows, opened.activations(pictures), shown, likeness, of_exemplars, missing)


def relation(found: Evidence, label: str, name: str, ordinary: Sequence[int]) -> Relation:
    """What `name` is to the label, by their words, else by CLIP; "other" where it cannot be told. A shorter name of
    which the label fits the images as well as its own means the same."""
    ours, theirs = set(label.split()), set(name.split())
    if ours == theirs:
        return "same"
    if theirs < ours or ours < theirs:
        if not theirs < ours:
            return "narrower"
        likeness = found.likeness.get(label)
        same = likeness is not None and auc(likeness[found.of([name])], likeness[found.of([label])]) >= AS_WELL
        return "same" if same else "broader"
    if not found.likeness:
        return "other"

    def fits(text: str, shown: str) -> bool:
        likeness = found.likeness[text]
        return auc(likeness[found.of([shown])], likeness[ordinary]) >= FITS

    if fits(name, label):
        return "same" if fits(label, name) else "broader"
    return "narrower" if fits(label, name) else "other"
