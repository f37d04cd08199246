"""Do the labels activate the units? Figures from images generated for the labels, and from probing images no label was
chosen on.

Every distinct label is drawn `n` times with seeds of its own; all units see all labels' images, so that each
unit's figure with its own label stands beside the same figure with every other unit's. What they are compared with
are random probing images outside the run's sample and exemplars. In the figures that need the concept's presence on
an image (F1, IoU, correlation, cosine, AUPRC and its inverse), a drawn image shows its label and a random one does
not, and the two groups weigh the same. Some random images do show it, so that even a perfect label stays below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dnd.api import Picture, derive_seed
from dnd.evaluation import metrics as binary
from dnd.evaluation.clip import BATCH, Clip
from dnd.evaluation.estimates import Pairs
from dnd.evaluation.reopen import Opened
from dnd.evaluation.tables import Row
from dnd.pipeline.images import image_stage, repeated, too_few

Floats = npt.NDArray[np.float64]
HELD_OUT = 512
"""Random probing images at most."""
_LEAST = 30
"""Fewer held-out images than this are none."""
PRESENCE = ("f1", "iou", "correlation", "cosine", "auprc", "inverse_auprc")


@dataclass
class OnImages:
    """What came of it: figures of `rows`, those units whose label has images."""

    rows: list[Row]
    pairs: list[Pairs]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def image_figures(opened: Opened, rows: Sequence[Row], clip: Clip | None) -> OnImages:
    """Figures of labelled units, each by its first label; a label without images is left out and noted."""
    digests, missing = image_stage(opened.job, {row.labels[0]: range(opened.job.run.images.n) for row in rows})
    most = opened.job.run.images.n
    missing |= {label: reason for label, own in digests.items() if (reason := too_few([*own.values()], most))}
    notes = [f"not generated: {label!r} ({reason})" for label, reason in missing.items()]
    rows = [row for row in rows if row.labels[0] not in missing]
    if not rows:
        return OnImages([], [], {}, notes)
    labels = list(dict.fromkeys(row.labels[0] for row in rows))
    held_out, source = held_out_images(opened)
    if source == "sample":
        notes.append("the probing set is too small to hold images out: its random images may have chosen the labels")
    drawn = [
        opened.job.store.picture(digest) for label in labels for digest in repeated([*digests[label].values()], most)
    ]
    seen = len({picture.digest for picture in drawn} & opened.seen().drawn)
    if seen:
        notes.append(f"{seen} of {len(drawn)} generated images were among those that chose the labels")
    by_layer = opened.activations([*drawn, *held_out])
    values = np.stack([by_layer[row.unit.layer][:, row.unit.index] for row in rows], axis=1).astype(np.float64)
    finite = [bool(np.isfinite(column).all()) for column in values.T]  # what is not would rank above all others
    notes += [f"left out: {row.unit}, not finite on some image" for row, ok in zip(rows, finite, strict=True) if not ok]
    rows, values = [row for row, ok in zip(rows, finite, strict=True) if ok], values[:, finite]
    if not rows:
        return OnImages([], [], {}, notes)
    shown = values[: len(drawn)].reshape(len(labels), -1, len(rows))  # (labels, images, units)
    ordinary = values[len(drawn) :]  # (held out, units)
    own = [labels.index(row.labels[0]) for row in rows]
    found = [_pairs(f"images.{name}", table, own, labels) for name, table in auc_tables(shown, ordinary).items()]
    if len(labels) > 1:
        found.append(_pairs("images.suppression_auc", suppression(shown), own, labels, chance=0.5))
    if clip is not None and source == "held out":
        found.append(
            _pairs("images.simulation_correlation", _simulation(opened, clip, labels, held_out, ordinary), own, labels)
        )
    facts = {"images_per_label": shown.shape[1], "distinct_labels": len(labels), "random_images": len(held_out)}
    return OnImages(list(rows), found, {**facts, "random_images_are": source}, notes)


def _pairs(name: str, table: Floats, own: list[int], labels: list[str], chance: float | None = None) -> Pairs:
    """`table` is (units, distinct labels)."""
    chance = 0.5 if name == "images.auc" else chance
    worst = 0.5 if name.endswith("auc") else 0.0
    return Pairs(name, table[:, own], table, labels, worst, chance=chance)


def auc_tables(shown: Floats, ordinary: Floats) -> dict[str, Floats]:
    """(labels, images, units) and (random images, units) -> each figure as (units, labels)."""
    n_labels, n_images, n_units = shown.shape
    presence = np.concatenate([np.ones(n_images), np.zeros(len(ordinary))])
    weights = np.concatenate([np.full(n_images, 0.5 / n_images), np.full(len(ordinary), 0.5 / len(ordinary))])
    tables = {name: np.empty((n_units, n_labels)) for name in ("auc", "mad", *PRESENCE)}
    for unit in range(n_units):
        drawn, random = shown[:, :, unit], ordinary[:, unit]
        both = np.concatenate([drawn, np.broadcast_to(random, (n_labels, len(random)))], axis=1)
        tables["auc"][unit] = binary.inverse_auc(presence, both, weights)  # CoSy's, which it calls AUC
        for name in PRESENCE:
            tables[name][unit] = binary.METRICS[name](presence, both, weights)
        tables["mad"][unit] = binary.mad(drawn, random)
    return tables


def suppression(shown: Floats) -> Floats:
    """(labels, images, units) -> (units, labels): the chance that an image of a label moves the unit more than one of
    another label; ties count half."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    n_labels, n_images, n_units = shown.shape
    ranks = rankdata(shown.reshape(-1, n_units), axis=0).reshape(shown.shape).sum(axis=1)  # (labels, units)
    wins = ranks - n_images * (n_images + 1) / 2
    return np.asarray((wins / (n_images * n_images * (n_labels - 1))).T)


def look_at(opened: Opened, clip: Clip, pictures: Sequence[Picture]) -> npt.NDArray[np.float32]:
    """(n, d): what CLIP sees in the pictures, each computed once and kept in the store."""

    def look(batch: Sequence[Picture]) -> list[bytes]:
        return [row.tobytes() for row in clip.images([picture.open() for picture in batch]).astype("<f4")]

    return opened.vectors("evaluation-clip", {"clip": clip.digest}, pictures, nullcontext(), look, lambda: BATCH)


def _simulation(
    opened: Opened, clip: Clip, labels: Sequence[str], pictures: Sequence[Picture], activations: Floats
) -> Floats:
    """(units, labels): correlation of CLIP's likeness of label and image with the unit's activation on it."""

    seen = look_at(opened, clip, pictures)
    likeness = (clip.texts(labels) @ seen.T).astype(np.float64)  # (labels, images)
    return np.stack([binary.correlation(likeness, unit, np.ones(len(unit))) for unit in activations.T])


def held_out_images(opened: Opened) -> tuple[list[Picture], str]:
    """Random probing images that are neither in the run's sample nor among its exemplars; else any random ones."""
    seen = opened.seen()
    order = np.random.default_rng(derive_seed(opened.job.run.seed, "held out")).permutation(len(opened.probing))
    fresh = [i for i in order.tolist() if i not in seen.sample and opened.probing.image_name(i) not in seen.sources]
    pictures = [p for p in _distinct(opened, fresh) if p.digest not in seen.probed]
    if len(pictures) >= _LEAST:
        return pictures[:HELD_OUT], "held out"
    return _distinct(opened, order.tolist())[:HELD_OUT], "sample"


def _distinct(opened: Opened, indices: Sequence[int]) -> list[Picture]:
    """So many probing images as are needed, in order, each content once; those that cannot be read left out."""
    found: dict[str, Picture] = {}
    for index in indices:
        if len(found) == 2 * HELD_OUT:
            break
        try:
            picture = opened.job.store.put_image(opened.probing.open(index))
        except (OSError, ValueError):
            continue  # the run has listed it as unreadable
        found[picture.digest] = picture
    return list(found.values())
