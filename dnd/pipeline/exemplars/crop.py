"""The second pass: crops of the images that units chose; those without an answer go through the target once more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from dnd.api import Box, ProbingSet, Unit
from dnd.pipeline.exemplars.answers import Answer, Answers, Map
from dnd.pipeline.exemplars.boxes import attention_boxes
from dnd.probing.prefetch import map_ahead, open_again, prepare
from dnd.results.unit import ActivationMap
from dnd.store.table import Table
from dnd.target.attention import small_map
from dnd.target.geometry import Geometry, cut, to_source
from dnd.target.hooked import HookedTarget
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
        answers: Answers,
    ) -> None:
        """`max_crops` per image. With `features`, candidates also get their place in the activation space. Images with
        `answers` do not go through the target again."""
        self.hooked, self.probing, self.table, self.answers = hooked, probing, table, answers
        self.geometry = Geometry(hooked.prepare)
        self.max_crops, self.features, self.workers = max_crops, features, workers

    def run(
        self, units: Sequence[Unit], images_of: Callable[[Unit], Sequence[int]], cropped: int, stage: Stage
    ) -> None:
        """Give the table a row for each of the units' images, strongest first, each image in one go for all units. The
        first `cropped` of a unit also get crops. `stage` is `dnd.runtime.progress.Meter.stage`."""
        pairs: dict[str, tuple[Unit, int, bool]] = {}
        for unit in units:
            may_crop = self._has_map(unit)
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

        def load(index: int) -> tuple[int, Answer | torch.Tensor]:
            answer = self.answers.of(index, [unit for unit, _ in wanted[index]])
            if answer:
                return index, answer
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

    def _rows(self, batch: Sequence[tuple[int, Answer | torch.Tensor]], wanted: Wanted) -> list[dict[str, Any]]:
        """Rows for some images."""
        lines = {
            (row, unit): _Line(_key(unit, index), [], [], [])
            for row, (index, _) in enumerate(batch)
            for unit, _ in wanted[index]
        }
        answers = self._answers(batch, wanted)
        for (row, unit), line in lines.items():
            self._place(line, unit, answers[row].pooled[unit.layer])
            line.map = answers[row].maps[unit] if self._has_map(unit) else None
        cropped = [[unit for unit, crop in wanted[index] if crop] for index, _ in batch]
        with_maps = sorted({row for (row, _), line in lines.items() if line.map is not None})
        sources = map_ahead(
            lambda row: self._source(row, batch[row][0], answers[row], cropped[row]),
            with_maps,
            self.workers,
            self.workers,
        )
        cuts = map_ahead(
            lambda one: self._cut(*one), _boxes(sources, lines, wanted), self.workers, self.hooked.batch_size
        )
        for crops in _batches(cuts, self.hooked.batch_size):
            self._add_crops(crops, lines)
        return [line.row() for line in lines.values()]

    def _answers(self, batch: Sequence[tuple[int, Answer | torch.Tensor]], wanted: Wanted) -> list[Answer]:
        """The target's on the whole images: those that are there, and new ones."""
        new = [(index, given) for index, given in batch if isinstance(given, torch.Tensor)]
        found = iter(self._observe([index for index, _ in new], [tensor for _, tensor in new], wanted) if new else ())
        return [next(found) if isinstance(given, torch.Tensor) else given for _, given in batch]

    def _observe(self, images: Sequence[int], tensors: Sequence[torch.Tensor], wanted: Wanted) -> list[Answer]:
        pairs: dict[str, list[tuple[int, int]]] = {}
        for row, index in enumerate(images):
            for unit, _ in wanted[index]:
                if self._has_map(unit):
                    pairs.setdefault(unit.layer, []).append((row, unit.index))
        pooled, maps = self.hooked.observe(stack(tensors), pairs)
        found = [
            Answer((tensor.shape[1], tensor.shape[2]), {layer: values[row] for layer, values in pooled.items()}, {})
            for row, tensor in enumerate(tensors)
        ]
        for layer, own in pairs.items():
            for (row, index), one in zip(own, maps[layer], strict=True):
                found[row].maps[Unit(layer, index)] = one
        return found

    def _has_map(self, unit: Unit) -> bool:
        return self.max_crops > 0 and self.hooked.has_maps(unit.layer)

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

    def _source(self, row: int, index: int, answer: Answer, cropped: Sequence[Unit]) -> _Source:
        """One image with the attention boxes of the units in `cropped`.

        It is opened once more, and comes from memory (`RememberedSet`) unless the photographs of a batch are so large
        that they would fill it.
        """
        image = open_again(self.probing, index)
        view = self.geometry.frame(image.size)
        units: dict[Box, list[Unit]] = {}
        for unit in cropped if view else ():
            for box in attention_boxes(answer.maps[unit], answer.size, self.max_crops):
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
