"""Units of a run by likeness: a map of all of them, and the nearest ones of each.

By words: of a unit's label (weight 3), of its alternatives and of its captions (1 in all), by tf-idf (Salton and
Buckley 1988). By activation: Pearson's correlation on the run's random sample. Maps are principal components, spread
to a grid in which every unit has a cell.
"""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from dnd.results.unit import UnitResult

Floats = npt.NDArray[np.float32]
_WORDS = 1000
"""Of those that several units have, most common first."""
_NEAREST = 6
_ROWS = 1024
"""Units whose likeness to all is in memory at once."""


class Atlas:
    """Takes in a run's units in order; `record` has the maps."""

    def __init__(self) -> None:
        self._words: list[dict[str, float]] = []
        self._cells: list[npt.NDArray[np.uint8]] = []

    def add(self, record: UnitResult) -> None:
        found: dict[str, float] = {}
        for weight, texts in (
            (3.0, [record.concept]),
            (1.0, [one.concept for one in record.labels[record.status == "labelled" :]]),
            (1.0, [one.caption or "" for one in record.exemplars]),
        ):
            for text in texts:
                for word in re.findall(r"\w+", text.lower()):
                    found[word] = found.get(word, 0.0) + weight / len(texts)
        self._words.append(found)
        cells = record.baseline.cells if record.baseline else ""
        self._cells.append(np.frombuffer(base64.b64decode(cells + "=" * (-len(cells) % 4)), np.uint8))

    def record(self) -> list[dict[str, Any]]:
        """Of each likeness that is known: its name, a cell (column, row) per unit, and the nearest units of each,
        as (place, cosine)."""
        found = {"label": self._by_words(), "activation": self._by_activation()}
        return [
            {"name": name, "cells": _grid(_components(rows)).tolist(), "near": _nearest(rows)}
            for name, rows in found.items()
            if rows is not None and len(rows) > 2
        ]

    def _by_words(self) -> Floats | None:
        shares = Counter(word for words in self._words for word in words)
        known = [word for word, n in sorted(shares.items(), key=lambda one: (-one[1], one[0])) if n > 1][:_WORDS]
        place = {word: at for at, word in enumerate(known)}
        rows = np.zeros((len(self._words), len(known)), np.float32)
        for at, words in enumerate(self._words):
            for word, weight in words.items():
                if word in place:
                    rows[at, place[word]] = weight * math.log(len(rows) / shares[word])
        return _unit_length(rows) if rows.any() else None

    def _by_activation(self) -> Floats | None:
        """None for a run of before this was kept; a unit without a sample is like no other."""
        size = max((len(cells) for cells in self._cells), default=0)
        if not size:
            return None
        rows = np.zeros((len(self._cells), size), np.float32)
        for row, cells in zip(rows, self._cells, strict=True):
            if len(cells) == size:
                row[:] = cells
        return _unit_length(rows - rows.mean(1, keepdims=True))


def _unit_length(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)


def _components(rows: Floats) -> Floats:
    """(n, 2): the first two principal components, their largest entries positive."""
    centred = (rows - rows.mean(0)).astype(np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, :-3:-1] if vectors.shape[1] > 1 else np.repeat(vectors, 2, 1)
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(2)])
    return np.asarray(centred @ axes, np.float32)


def _grid(places: Floats) -> npt.NDArray[np.int64]:
    """(n, 2) columns and rows of a square grid: sorted along the first axis into columns, within each by the second."""
    edge = math.ceil(math.sqrt(len(places)))
    cells = np.zeros((len(places), 2), np.int64)
    across = np.argsort(places[:, 0], kind="stable")
    for column, members in enumerate(np.array_split(across, edge)):
        inside = members[np.argsort(places[members, 1], kind="stable")]
        cells[inside, 0], cells[inside, 1] = column, np.arange(len(inside))
    return cells


def _nearest(rows: Floats) -> list[list[tuple[int, float]]]:
    found: list[list[tuple[int, float]]] = []
    for start in range(0, len(rows), _ROWS):
        alike = rows[start : start + _ROWS] @ rows.T
        alike[np.arange(len(alike)), start + np.arange(len(alike))] = -np.inf
        for row in alike:
            best = np.argsort(-row, kind="stable")[:_NEAREST]
            found.append([(int(at), round(float(row[at]), 2)) for at in best if row[at] > 0.05])
    return found
