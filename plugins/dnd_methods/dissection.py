"""The method "network-dissection" (Bau et al., CVPR 2017): the concept whose masks overlap a unit's regions most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd.api import Unit
from dnd_methods.labels import AT_MOST, label
from dnd_methods.quantile import TopShare

if TYPE_CHECKING:
    from dnd.api import Box, Study

Masks = Mapping[str, Mapping[str, npt.NDArray[np.bool_]]]
_BUDGET = 128 * 2**20
"""Floats of the threshold's pass that may be in memory; with more, units take turns."""


class NetworkDissectionConfig(api.Config):
    share: float = pydantic.Field(0.005, gt=0, lt=1)
    """Of a unit's map cells over the probing set, the strongest so many count as its region."""
    resolution: int = pydantic.Field(112, ge=8, le=1024)
    """Side of the grid on which maps and masks are compared."""
    min_iou: float = pydantic.Field(0.04, ge=0, le=1)
    """What the best concept's IoU must reach, or the unit is uninterpretable."""


class NetworkDissection(api.Method):
    """IoU of thresholded maps with the masks that the probing set carries (Bau et al., 2017)."""

    name = "network-dissection"
    Config = NetworkDissectionConfig

    def describe(self, study: Study) -> Iterator[api.Label]:
        if not any(study.probing.masks(index) for index in study.images[:16]):
            raise api.UsageError(
                "network-dissection needs a probing set with concept masks, and the first 16 images have none",
                "Give --probe broden with --set probing.folder=FOLDER, or a set of your own with `masks`.",
            )
        flat = next((unit.layer for unit in study.units if study.map_shape(unit.layer) == ()), None)
        if flat is not None:
            raise api.UsageError(
                f"network-dissection compares activation maps, and units of layer {flat} have none",
                "Choose a convolutional or ViT layer with --layer, or another --method.",
            )
        units = list(study.units)
        least = thresholds(study, units, self.config.share)
        table = overlaps(study, units, least, self.config.resolution)
        for unit in units:
            best = sorted(table[unit].items(), key=lambda pair: (-pair[1], pair[0]))[:AT_MOST]
            yield label(unit, best, self.config.min_iou, "its best IoU")


def thresholds(study: Study, units: list[Unit], share: float) -> dict[Unit, float]:
    """What the largest `share` of each unit's map cells over the whole probing set reach."""
    found: dict[Unit, float] = {}
    layers = {unit.layer for unit in units}
    for layer in sorted(layers):
        own = [unit for unit in units if unit.layer == layer]
        cells = int(np.prod(study.map_shape(layer)))
        length = len(study.images) * cells
        at_once = max(1, int(_BUDGET / max(1.0, 2 * length * share)))
        for start in range(0, len(own), at_once):
            part = own[start : start + at_once]
            top = TopShare(len(part), length, share)
            for _, maps in study.maps(part, f"thresholds {layer}"):
                top.add(maps.transpose(1, 0, 2, 3).reshape(len(part), -1))
            found |= dict(zip(part, top.threshold().tolist(), strict=True))
    return found


class Overlap:
    """Cells shared by units' regions and concepts' masks, summed over images."""

    def __init__(self, units: int) -> None:
        self._units = units
        self._shared: dict[tuple[str, str], npt.NDArray[np.int64]] = {}
        self._concept: dict[tuple[str, str], int] = {}
        self._unit: dict[str, npt.NDArray[np.int64]] = {}
        """Category -> cells of each unit's regions on the images that are labelled for it."""

    def add(self, regions: npt.NDArray[np.bool_], masks: Masks) -> None:
        """One image: regions (n_units, h, w); category -> concept -> mask (h, w)."""
        flat = regions.reshape(self._units, -1)
        sizes = flat.sum(1)
        for category, of_category in masks.items():
            self._unit[category] = self._unit.get(category, 0) + sizes
            for concept, mask in of_category.items():
                key = category, concept
                self._shared[key] = self._shared.get(key, 0) + flat[:, mask.ravel()].sum(1)
                self._concept[key] = self._concept.get(key, 0) + int(mask.sum())

    def iou(self) -> tuple[list[str], npt.NDArray[np.float64]]:
        """Concepts, and (n_units, n_concepts): shared cells over cells of either, on images labelled for it."""
        keys = sorted(self._shared)
        table = np.zeros((self._units, len(keys)))
        for column, key in enumerate(keys):
            either = self._unit[key[0]] + self._concept[key] - self._shared[key]
            table[:, column] = self._shared[key] / np.maximum(either, 1)
        return [concept for _, concept in keys], table


def enlarge(maps: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """(..., h, w) -> (..., side, side), bilinear, cells as areas."""
    import torch

    found: npt.NDArray[np.float32] = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size=(side, side), mode="bilinear", align_corners=False
    )[0].numpy()
    return found


def seen(mask: npt.NDArray[np.bool_], frame: Box | None, side: int) -> npt.NDArray[np.bool_]:
    """A mask of the whole image -> (side, side), what the target saw of it; `frame` in fractions of the image."""
    left, top, right, bottom = frame or (0.0, 0.0, 1.0, 1.0)
    middles = (np.arange(side) + 0.5) / side
    xs, ys = left + middles * (right - left), top + middles * (bottom - top)
    inside = ((ys >= 0) & (ys < 1))[:, None] & ((xs >= 0) & (xs < 1))[None]
    rows = np.clip((ys * mask.shape[0]).astype(int), 0, mask.shape[0] - 1)
    columns = np.clip((xs * mask.shape[1]).astype(int), 0, mask.shape[1] - 1)
    found: npt.NDArray[np.bool_] = mask[np.ix_(rows, columns)] & inside
    return found


def overlaps(study: Study, units: list[Unit], least: Mapping[Unit, float], side: int) -> dict[Unit, dict[str, float]]:
    """IoU of every unit with every concept that the probing set labels."""
    found: dict[Unit, dict[str, float]] = {}
    for layer in sorted({unit.layer for unit in units}):
        own = [unit for unit in units if unit.layer == layer]
        limits = np.array([least[unit] for unit in own], np.float32)[:, None, None]
        overlap = Overlap(len(own))
        for indices, maps in study.maps(own, f"overlaps {layer}"):
            for index, of_image in zip(indices, maps, strict=True):
                frame = study.frame(index)
                masks: dict[str, Any] = {
                    category: {concept: seen(mask, frame, side) for concept, mask in concepts.items()}
                    for category, concepts in study.probing.masks(index).items()
                }
                overlap.add(enlarge(of_image, side) > limits, masks)
        concepts, table = overlap.iou()
        found |= {unit: dict(zip(concepts, row.tolist(), strict=True)) for unit, row in zip(own, table, strict=True)}
    return found
