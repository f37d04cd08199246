"""Units grouped by what their labels mean, and which share of a layer each kind of meaning has.

Labels become sentence embeddings; average-linkage clustering on their cosine distance, cut at a distance, gives the
groups. A group has two units at least; a unit that shares its meaning with none is ungrouped. Super-categories are
the same tree cut higher, or those of a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dnd.api import Unit
from dnd.errors import UsageError
from dnd.files import read_text
from dnd.models.encoder import Floats, embed
from dnd.results.run import RunFolder

if TYPE_CHECKING:
    from dnd.models.encoder import Encoder

DISTANCE = 0.45
"""1 - cosine, averaged over pairs of labels, up to which groups are joined."""
WIDE = 0.75
"""The same for super-categories."""
LEAST = 0.3
"""Cosine below which a label fits no category of a file."""
OTHER = "other"


@dataclass(frozen=True)
class Group:
    """Units whose labels mean much the same."""

    name: str
    units: tuple[Unit, ...]
    labels: tuple[str, ...]
    """Of each unit."""
    category: str
    coherence: float
    """Mean cosine between its units' labels, 1 where all are the same."""


@dataclass(frozen=True)
class Groups:
    """A run's units by meaning."""

    groups: tuple[Group, ...]
    """Largest first."""
    ungrouped: tuple[Unit, ...]
    """Labelled, but like no other."""
    unlabelled: tuple[Unit, ...]
    """Uninterpretable or failed."""
    categories: Mapping[Unit, str]
    """Of every labelled unit."""
    labels: Mapping[Unit, str]

    def profile(self) -> dict[str, dict[str, float]]:
        """Layer -> super-category -> its share of the layer's labelled units; most common category first."""
        order = [name for name, _ in Counter(self.categories.values()).most_common()]
        order = [*[name for name in order if name != OTHER], *[name for name in order if name == OTHER]]
        layers: dict[str, Counter[str]] = {}
        for unit, category in self.categories.items():
            layers.setdefault(unit.layer, Counter())[category] += 1
        return {
            layer: {name: counts[name] / counts.total() for name in order if counts[name]}
            for layer, counts in layers.items()
        }


def group_units(
    run: RunFolder,
    encoder: Encoder,
    *,
    distance: float = DISTANCE,
    wide: float = WIDE,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> Groups:
    """Group a run's units by their first label. Groups and categories are named by their most central label;
    `categories`, name -> words, are used instead of the wider cut where given."""
    labels = {one.unit: one.labels[0][0] for one in run.labels if one.status == "labelled" and one.labels}
    unlabelled = tuple(one.unit for one in run.labels if one.unit not in labels)
    if not labels:
        return Groups((), (), unlabelled, {}, {})
    words = sorted(set(labels.values()))
    vectors = embed(encoder, words)
    weights = Counter(labels.values())
    fine = _cut(vectors, distance)
    names = _names(words, vectors, fine, weights)
    if categories is None:
        kinds = _names(words, vectors, _cut(vectors, max(distance, wide)), weights)
    else:
        kinds = dict(zip(words, _nearest_category(vectors, categories, encoder), strict=True))
    place = {word: at for at, word in enumerate(words)}
    members: dict[int, list[Unit]] = {}
    for unit, label in labels.items():
        members.setdefault(int(fine[place[label]]), []).append(unit)
    groups = []
    for units in members.values():
        if len(units) > 1:
            said = tuple(labels[unit] for unit in units)
            category = Counter(kinds[label] for label in said).most_common(1)[0][0]
            coherence = _coherence(vectors[[place[word] for word in said]])
            groups.append(Group(names[said[0]], tuple(units), said, category, coherence))
    groups.sort(key=lambda group: (-len(group.units), group.name))
    alone = tuple(units[0] for units in members.values() if len(units) == 1)
    return Groups(tuple(groups), alone, unlabelled, {unit: kinds[label] for unit, label in labels.items()}, labels)


def read_categories(file: Path) -> dict[str, list[str]]:
    """ "category: word, word" a line; # begins a comment."""
    try:
        lines = read_text(file, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {file}: {getattr(error, 'strerror', None) or error}",
            "Write a text file (UTF-8), a line for each category: water: lake, river, sea",
        ) from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, colon, rest = text.partition(":")
        words = [word.strip() for word in rest.split(",") if word.strip()]
        if not (colon and name.strip() and words):
            raise UsageError(f"{file}, line {number}: {text!r} is not a category", "Write: water: lake, river, sea")
        found.setdefault(name.strip(), []).extend(words)
    if not found:
        raise UsageError(f"{file} names no category", "Write a line for each: water: lake, river, sea")
    return found


def _cut(vectors: Floats, distance: float) -> npt.NDArray[np.int64]:
    """Which cluster each row belongs to."""
    from scipy.cluster.hierarchy import fcluster, linkage  # type: ignore[import-untyped]
    from scipy.spatial.distance import pdist  # type: ignore[import-untyped]

    if len(vectors) == 1:
        return np.ones(1, np.int64)
    apart = np.maximum(pdist(vectors.astype(np.float64), "cosine"), 0)  # -1e-16 of equal rows is no distance
    found: npt.NDArray[np.int64] = fcluster(linkage(apart, "average"), distance, "distance").astype(np.int64)
    return found


def _names(
    words: Sequence[str], vectors: Floats, clusters: npt.NDArray[np.int64], weights: Mapping[str, int]
) -> dict[str, str]:
    """Each word -> the most central word of its cluster, words counted as often as units have them."""
    names: dict[str, str] = {}
    for cluster in np.unique(clusters):
        rows = np.flatnonzero(clusters == cluster).tolist()
        often = np.array([weights[words[row]] for row in rows], np.float64)
        central = vectors[rows] @ vectors[rows].T @ often
        name = words[rows[int(central.argmax())]]
        names |= {words[row]: name for row in rows}
    return names


def _nearest_category(vectors: Floats, categories: Mapping[str, Sequence[str]], encoder: Encoder) -> list[str]:
    """Each row's category: that of the nearest word, a category's own name included."""
    owners = [(name, word) for name, words in categories.items() for word in (name, *words)]
    near = vectors @ embed(encoder, [word.lower() for _, word in owners]).T
    return [owners[int(row.argmax())][0] if row.max() >= LEAST else OTHER for row in near]


def _coherence(rows: Floats) -> float:
    n = len(rows)
    return float(((rows @ rows.T).sum() - n) / (n * (n - 1)))
