"""What the target answered on images that are among a unit's strongest, so that these need not go through it again.

Kept while there is room. Images without an answer, as after a pass that was resumed or made in parts, go through the
target once more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dnd.api import Unit
from dnd.pipeline.exemplars.topk import LayerTop
from dnd.target.hooked import HookedTarget, Pooled

ROOM = 256 << 20
"""Bytes of activations and maps."""
_BESIDE = 400
"""Bytes that Python takes for a map, about."""
Map = npt.NDArray[np.float32]


class Answer(NamedTuple):
    """Of the target on one image."""

    size: tuple[int, int]
    """(H, W) of its input."""
    pooled: Pooled
    """Layer -> float32 (U,), of the units' layers."""
    maps: dict[Unit, Map]
    """(h, w), or (0,) of a unit that has none."""


class Answers:
    """Those of a pass, for some units."""

    def __init__(self, hooked: HookedTarget, units: Sequence[Unit]) -> None:
        self._hooked, self._units = hooked, units
        self._indices = {layer: [unit.index for unit in units if unit.layer == layer] for layer in hooked.layers}
        self._of: dict[int, Answer] = {}
        self._used = 0
        sizes = {layer: 4 * math.prod(hooked.map_shape(layer)) + _BESIDE for layer in self._indices}
        of_an_image = sum(len(own) * sizes[layer] for layer, own in self._indices.items())
        self._is_full = not 0 < of_an_image * hooked.batch_size <= ROOM  # for of the first batch all maps are kept

    def of(self, image: int, units: Collection[Unit]) -> Answer | None:
        """None where that on one of these units is not there."""
        answer = self._of.get(image)
        return answer if answer and all(unit in answer.maps for unit in units) else None

    def observe(self, batch: torch.Tensor, images: Sequence[int], tops: Mapping[str, LayerTop]) -> Pooled:
        """`hooked.pooled`, before `tops` take these images in; answers of those that they will take in are kept."""
        if self._is_full:
            return self._hooked.pooled(batch)
        pooled, found = self._hooked.observe_above(batch, {name: self._levels(name, top) for name, top in tops.items()})
        maps: dict[int, dict[Unit, Map]] = {}
        for layer, rows, indices, own in found:
            for row, index, one in zip(rows, indices, own, strict=True):
                maps.setdefault(row, {})[Unit(layer, index)] = one.copy()
        for row, of_image in maps.items():
            self._keep(
                images[row], (batch.shape[2], batch.shape[3]), {one: pooled[one][row] for one in pooled}, of_image
            )
        if self._used > ROOM:
            self._make_room(tops)
        return pooled

    def _levels(self, layer: str, top: LayerTop) -> torch.Tensor:
        """What an activation must exceed to be among a unit's strongest, (U,); infinite for units not asked for."""
        levels = torch.full_like(top.values[-1], torch.inf)
        levels[self._indices[layer]] = top.values[-1, self._indices[layer]]
        return levels

    def _keep(self, image: int, size: tuple[int, int], pooled: Pooled, maps: dict[Unit, Map]) -> None:
        rows = {layer: pooled[layer].clone() for layer in {unit.layer for unit in maps}}
        self._of[image] = Answer(size, rows, maps)
        self._used += sum(row.nbytes for row in rows.values()) + sum(one.nbytes + _BESIDE for one in maps.values())

    def _make_room(self, tops: Mapping[str, LayerTop]) -> None:
        """Forget what is no longer among the strongest. Where that does not help, no more is kept."""
        strongest = {
            unit: set(tops[unit.layer].images[:, unit.index].tolist()) for unit in self._units if unit.layer in tops
        }
        answers, self._of, self._used = self._of, {}, 0
        for image, answer in answers.items():
            maps = {unit: one for unit, one in answer.maps.items() if image in strongest[unit]}
            if maps:
                self._keep(image, answer.size, answer.pooled, maps)
        self._is_full = self._used > ROOM / 2
