"""The second pass: just the images that units chose, once more through the target for their maps, then the crops."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from dnd.api import Box, ProbingSet, Unit
from dnd.pipeline.exemplars.boxes import attention_boxes
from dnd.probing.prefetch import map_ahead, open_again, prepare
from dnd.results.unit import ActivationMap
from dnd.store.table import Table
from dnd.target.attention import small_map
from dnd.target.geometry import Geometry, cut, to_source
from dnd.target.hooked import HookedTarget, Maps
from dnd.target.preprocess import stack

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

MAP = pa.struct([("shape", pa.list_(pa.int32())), ("frame", pa.list_(pa.float64())), ("cells", pa.string())])
"""`dnd.results.unit.ActivationMap`."""
REGIONS = pa.schema(
    [
        ("key", pa.string()),  # unit and image: see `_key`
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("activations", pa.list_(pa.float32())),
        ("features", pa.list_(pa.list_(pa.float32()))),  # of the whole image, then of each crop; or empty
        ("map", MAP),  # of the whole image; or null
    ]
)
_LINES_AT_ONCE = 4096
"""Pairs of an image and a unit whose maps are in memory together, unless they are all of one image."""
_NOTHING: dict[str, Any] = {"boxes": [], "activations": [], "features": [], "map": None}
Map = npt.NDArray[np.float32]
Wanted = dict[int, list[tuple[Unit, bool]]]
"""Image -> the units that chose it, and whether its crops are wanted too."""
Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Rows = Mapping[str, Mapping[str, Any]]
"""Of `REGIONS`, by key."""
Features = Mapping[str, npt.NDArray[np.float32]]
"""Layer -> matrix (U + 1, d): activations and a 1 in, a place in the layer's activation space out."""


@contextmanager
def unseen(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A stage that is not shown."""
    yield lambda n: None


class Region(NamedTuple):
    """A probing image that may become an exemplar, or a crop of one."""

    image: int
    box: Box | None
    """In fractions of the source; None for the whole image."""
    activation: float
    features: tuple[float, ...] = ()
    map: ActivationMap | None = None
    """The unit's, on the whole image, where one was taken."""


@dataclass
class _Source:
    """An image of a batch, and the attention boxes of units in it."""

    row: int
    index: int
    image: Image
    frame: Box | None
    """Of its maps."""
    units: dict[Box, list[Unit]]


@dataclass
class _Crop:
    """One box of one image, for all units that want it."""

    row: int
    box: Box
    tensor: torch.Tensor
    units: list[Unit]


@dataclass
class _Line:
    """A row of `REGIONS`."""

    key: str
    boxes: list[list[float]]
    activations: list[float]
    features: list[list[float]]
    map: Map | None = None
    frame: Box | None = None

    def row(self) -> dict[str, Any]:
        cells = small_map(self.map) if self.map is not None and self.frame is not None else None
        found = None if cells is None or self.frame is None else ActivationMap.of(cells, self.frame).model_dump()
        return {
            "key": self.key,
            "boxes": self.boxes,
            "activations": self.activations,
            "features": self.features,
            "map": found,
        }


class Cropper:
    """Finds the crops of (unit, image) pairs; what is found is durable batch by batch."""

    def __init__(
        self,
        hooked: HookedTarget,
        probing: ProbingSet,
        table: Table,
        *,
        max_crops: int,
        features: Features,
        workers: int,
    ) -> None:
        """`max_crops` per image. With `features`, candidates also get their place in the activation space."""
        self.hooked, self.probing, self.table = hooked, probing, table
        self.geometry = Geometry(hooked.prepare)
        self.max_crops, self.features, self.workers = max_crops, features, workers

    def run(
        self, units: Sequence[Unit], images_of: Callable[[Unit], Sequence[int]], cropped: int, stage: Stage
    ) -> None:
        """Give the table a row for each of the units' images, strongest first, each image in one go for all units. The
        first `cropped` of a unit also get crops. `stage` is `dnd.runtime.progress.Meter.stage`."""
        pairs: dict[str, tuple[Unit, int, bool]] = {}
        for unit in units:
            may_crop = self.max_crops > 0 and self.hooked.has_maps(unit.layer)
            for rank, image in enumerate(images_of(unit)):
                if self.features or (may_crop and rank < cropped):
                    pairs[_key(unit, image)] = unit, image, may_crop and rank < cropped
        found = self.table.keys(pairs)
        wanted: Wanted = {}
        for key, (unit, image, crop) in pairs.items():
            if key not in found:
                wanted.setdefault(image, []).append((unit, crop))
        if not wanted:
            return

        def load(index: int) -> tuple[int, torch.Tensor]:
            return index, prepare(self.hooked, open_again(self.probing, index), self.probing.image_name(index))

        loaded = map_ahead(load, sorted(wanted), self.workers, self.hooked.batch_size + self.workers)
        with stage("crops", len(wanted)) as advance:
            for batch in _batches(loaded, self.hooked.batch_size, lambda one: len(wanted[one[0]])):
                self.table.append(self._rows(batch, wanted))
                advance(len(batch))
        self.table.compact()

    def rows(self, units: Sequence[Unit], images_of: Callable[[Unit], Sequence[int]]) -> Rows:
        """What the table has of some units' images, by key."""
        keys = {_key(unit, image) for unit in units for image in images_of(unit)}
        return {row["key"]: row for row in self.table.rows(keys=keys)}

    def _rows(self, batch: Sequence[tuple[int, torch.Tensor]], wanted: Wanted) -> list[dict[str, Any]]:
        """Rows for some images."""
        lines = {
            (row, unit): _Line(_key(unit, index), [], [], [])
            for row, (index, _) in enumerate(batch)
            for unit, _ in wanted[index]
        }
        maps = self._maps(batch, lines)
        cropped = [{unit for unit, crop in wanted[index] if crop} for index, _ in batch]
        sources = map_ahead(
            lambda row: self._source(row, *batch[row], maps[row], cropped[row]),
            sorted(maps),
            self.workers,
            self.workers,
        )
        cuts = map_ahead(
            lambda one: self._cut(*one), _boxes(sources, lines, wanted), self.workers, self.hooked.batch_size
        )
        for crops in _batches(cuts, self.hooked.batch_size):
            self._add_crops(crops, lines)
        return [line.row() for line in lines.values()]

    def _maps(
        self, batch: Sequence[tuple[int, torch.Tensor]], lines: Mapping[tuple[int, Unit], _Line]
    ) -> dict[int, list[tuple[Unit, Map]]]:
        """The whole images through the target: their places and maps into `lines`, and the maps by row of the batch."""
        wanted: dict[str, list[tuple[int, int]]] = {}
        for row, unit in lines:
            if self.max_crops and self.hooked.has_maps(unit.layer):
                wanted.setdefault(unit.layer, []).append((row, unit.index))
        pooled, maps = self.hooked.observe(stack([tensor for _, tensor in batch]), wanted)
        for (row, unit), line in lines.items():
            self._place(line, unit, pooled[unit.layer][row])
        by_row = _by_row(wanted, maps)
        for row, pairs in by_row.items():
            for unit, activation_map in pairs:
                lines[row, unit].map = activation_map
        return by_row

    def _add_crops(self, crops: Sequence[_Crop], lines: Mapping[tuple[int, Unit], _Line]) -> None:
        """The crops through the target: their boxes and activations into `lines`."""
        pooled = self.hooked.pooled(stack([crop.tensor for crop in crops]))
        for place, crop in enumerate(crops):
            for unit in crop.units:
                line, values = lines[crop.row, unit], pooled[unit.layer][place]
                if not values[unit.index].isfinite():  # it could not be ranked
                    continue
                line.boxes.append(list(crop.box))
                line.activations.append(float(values[unit.index]))
                self._place(line, unit, values)

    def _place(self, line: _Line, unit: Unit, values: torch.Tensor) -> None:
        if self.features:
            row = np.append(np.nan_to_num(values.numpy()), np.float32(1))
            line.features.append((row @ self.features[unit.layer]).tolist())

    def _source(
        self, row: int, index: int, tensor: torch.Tensor, maps: Sequence[tuple[Unit, Map]], cropped: Collection[Unit]
    ) -> _Source:
        """One image with the attention boxes of the units in `cropped`, in a stable order.

        It is opened once more, and comes from memory (`RememberedSet`) unless the photographs of a batch are so large
        that they would fill it.
        """
        image, frame = open_again(self.probing, index), (tensor.shape[1], tensor.shape[2])
        view = self.geometry.frame(image.size)
        units: dict[Box, list[Unit]] = {}
        for unit, values in maps if view else ():
            for box in attention_boxes(values, frame, self.max_crops) if unit in cropped else ():
                if view and (source := to_source(view, box)):
                    units.setdefault(source, []).append(unit)
        return _Source(row, index, image, view, units)

    def _cut(self, source: _Source, box: Box) -> _Crop:
        tensor = prepare(self.hooked, cut(source.image, box), self.probing.image_name(source.index))
        return _Crop(source.row, box, tensor, source.units[box])


def regions_of(unit: Unit, images: Sequence[tuple[int, float]], rows: Rows) -> list[Region]:
    """A unit's images, (index, activation) strongest first, with all crops that were found; `rows` from a Cropper."""
    found = []
    for image, activation in images:
        row = rows.get(_key(unit, image)) or _NOTHING
        features = [tuple(f) for f in row["features"]] or [()] * (len(row["boxes"]) + 1)
        seen = row["map"] and ActivationMap.model_validate(row["map"], strict=False)
        found.append(Region(image, None, activation, features[0], seen))
        for box, value, feature in zip(row["boxes"], row["activations"], features[1:], strict=True):
            found.append(Region(image, Box(*box), value, feature))
    return found


def _key(unit: Unit, image: int) -> str:
    return f"{unit}@{image}"


def _batches(items: Iterable[T], size: int, lines: Callable[[T], int] = lambda item: 0) -> Iterator[list[T]]:
    """At most `size` together, and no more than make `_LINES_AT_ONCE` lines."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and (len(batch) == size or total + lines(item) > _LINES_AT_ONCE):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += lines(item)
    if batch:
        yield batch


def _boxes(
    sources: Iterable[_Source], lines: Mapping[tuple[int, Unit], _Line], wanted: Wanted
) -> Iterator[tuple[_Source, Box]]:
    """Every box of every source; each source's frame goes into its lines."""
    for source in sources:
        if source.frame:
            for unit, _ in wanted[source.index]:
                lines[source.row, unit].frame = source.frame
        yield from ((source, box) for box in source.units)


def _by_row(wanted: Mapping[str, Sequence[tuple[int, int]]], maps: Maps) -> dict[int, list[tuple[Unit, Map]]]:
    """The maps of each image of a batch."""
    found: dict[int, list[tuple[Unit, Map]]] = {}
    for layer, pairs in wanted.items():
        for (row, index), values in zip(pairs, maps[layer], strict=True):
            found.setdefault(row, []).append((Unit(layer, index), values))
    return found
