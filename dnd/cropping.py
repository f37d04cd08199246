"""The second pass: just the images that units chose, once more through the target for their maps, then the crops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from dnd.api import ProbingSet, Unit
from dnd.attention import Attention, packed
from dnd.crops import Box, attention_boxes
from dnd.geometry import Geometry, cut, to_source
from dnd.loading import map_ahead, open_again, prepare
from dnd.store import Table
from dnd.watched import Maps, Watched, stack

T = TypeVar("T")

CANDIDATES = pa.schema(
    [
        ("key", pa.string()),  # unit and image: see `_key`
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("activations", pa.list_(pa.float32())),
        ("features", pa.list_(pa.list_(pa.float32()))),  # of the whole image, then of each crop; or empty
        ("map", pa.binary()),  # of the whole image: see dnd/attention.py; or empty
        ("frame", pa.list_(pa.float64())),  # where the map lies, in fractions of the source; or empty
    ]
)
_NOTHING: dict[str, Any] = {"boxes": [], "activations": [], "features": [], "map": b"", "frame": []}
Map = npt.NDArray[np.float32]
Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
Features = Mapping[str, npt.NDArray[np.float32]]
"""Layer -> matrix (U + 1, d): activations and a 1 in, a place in the layer's activation space out."""


@contextmanager
def unseen(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A stage that nobody looks at."""
    yield lambda n: None


class Candidate(NamedTuple):
    """An image that may become an exemplar, or a crop of one."""

    image: int
    box: Box | None
    """In fractions of the source; None for the whole image."""
    activation: float
    features: tuple[float, ...] = ()
    attention: Attention | None = None
    """The unit's map on the whole image, where one was taken."""


@dataclass
class _Crop:
    """One box of one image, for all units that want it."""

    row: int
    box: Box
    tensor: torch.Tensor
    units: list[Unit]


@dataclass
class _Line:
    """A row of `CANDIDATES`."""

    key: str
    boxes: list[list[float]]
    activations: list[float]
    features: list[list[float]]
    map: bytes = b""
    frame: list[float] = field(default_factory=list)


class Cropper:
    """Finds the crops of (unit, image) pairs; what is found is durable batch by batch."""

    def __init__(
        self, watched: Watched, probing: ProbingSet, table: Table, *, max_crops: int, features: Features, workers: int
    ) -> None:
        """`max_crops` per image. With `features`, candidates also get their place in the activation space."""
        self.watched, self.probing, self.table = watched, probing, table
        self.geometry = Geometry(watched.prepare)
        self.max_crops, self.features, self.workers = max_crops, features, workers
        self._cropped: set[tuple[Unit, int]] = set()

    def run(self, chosen: Mapping[Unit, Sequence[int]], cropped: int, stage: Stage) -> None:
        """Have a row in the table for each of the units' images; the first `cropped` of a unit also get crops.

        `stage` is `dnd.progress.Meter.stage`.
        """
        done = self.table.keys()
        self._cropped = {(unit, image) for unit, images in chosen.items() for image in images[:cropped]}
        wanted: dict[int, list[Unit]] = {}
        for unit, images in chosen.items():
            for image in images:
                if _key(unit, image) not in done and (self.features or self._crops(unit, image)):
                    wanted.setdefault(image, []).append(unit)

        def load(index: int) -> tuple[int, torch.Tensor]:
            return index, prepare(self.watched, open_again(self.probing, index), self.probing.image_name(index))

        if not wanted:
            return
        loaded = map_ahead(load, sorted(wanted), self.workers, self.watched.batch_size + self.workers)
        with ThreadPoolExecutor(self.workers) as pool, stage("crops", len(wanted)) as advance:
            for batch in _batches(loaded, self.watched.batch_size):
                self._add(batch, wanted, pool)
                advance(len(batch))
        self.table.compact()

    def _crops(self, unit: Unit, image: int) -> bool:
        return self.max_crops > 0 and (unit, image) in self._cropped and self.watched.has_maps(unit.layer)

    def _add(
        self,
        batch: Sequence[tuple[int, torch.Tensor]],
        wanted: Mapping[int, Sequence[Unit]],
        pool: ThreadPoolExecutor,
    ) -> None:
        lines = {
            (row, unit): _Line(_key(unit, index), [], [], [])
            for row, (index, _) in enumerate(batch)
            for unit in wanted[index]
        }
        asked: dict[str, list[tuple[int, int]]] = {}
        for row, unit in lines:
            if self.max_crops and self.watched.has_maps(unit.layer):
                asked.setdefault(unit.layer, []).append((row, unit.index))
        pooled, maps = self.watched.observe(stack([tensor for _, tensor in batch]), asked)
        for (row, unit), line in lines.items():
            self._place(line, unit, pooled[unit.layer][row])
        by_row = _by_row(asked, maps)
        for row, pairs in by_row.items():
            for unit, activation_map in pairs:
                lines[row, unit].map = packed(activation_map)
        found = list(pool.map(lambda row: self._cut(row, *batch[row], by_row.get(row, [])), range(len(batch))))
        for (row, _), line in lines.items():
            if frame := found[row][1]:
                line.frame = list(frame)
        for crops in _batches((crop for row in found for crop in row[0]), self.watched.batch_size):
            pooled = self.watched.pooled(stack([crop.tensor for crop in crops]))
            for place, crop in enumerate(crops):
                for unit in crop.units:
                    line, values = lines[crop.row, unit], pooled[unit.layer][place]
                    line.boxes.append(list(crop.box))
                    line.activations.append(float(values[unit.index]))
                    self._place(line, unit, values)
        self.table.append([vars(line) for line in lines.values()])

    def _place(self, line: _Line, unit: Unit, values: torch.Tensor) -> None:
        if self.features:
            row = np.append(np.nan_to_num(values.numpy()), np.float32(1))
            line.features.append((row @ self.features[unit.layer]).tolist())

    def _cut(
        self, row: int, index: int, tensor: torch.Tensor, maps: Sequence[tuple[Unit, Map]]
    ) -> tuple[list[_Crop], Box | None]:
        """One image's crops, each once, in a stable order; and the frame of its maps in the source.

        The source is read once more, and only if needed: a batch of large photographs would fill the memory.
        """
        frame = (tensor.shape[1], tensor.shape[2])
        boxes = [
            (unit, box)
            for unit, values in maps
            if self._crops(unit, index)
            for box in attention_boxes(values, frame, self.max_crops)
        ]
        if not maps:
            return [], None
        image, name = open_again(self.probing, index), self.probing.image_name(index)
        view = self.geometry.frame(image.size)
        units: dict[Box, list[Unit]] = {}
        for unit, box in boxes:
            if source := view and to_source(view, box):
                units.setdefault(source, []).append(unit)
        return [_Crop(row, box, prepare(self.watched, cut(image, box), name), who) for box, who in units.items()], view


def read_candidates(table: Table, chosen: Mapping[Unit, Sequence[tuple[int, float]]]) -> dict[Unit, list[Candidate]]:
    """Each unit's images, (index, activation) strongest first, with all crops that were found."""
    lines = table.read({_key(unit, image) for unit, images in chosen.items() for image, _ in images})
    rows = {line["key"]: line for line in lines}
    found: dict[Unit, list[Candidate]] = {}
    for unit, images in chosen.items():
        found[unit] = []
        for image, activation in images:
            line = rows.get(
                _key(unit, image), {"boxes": [], "activations": [], "features": [], "map": b"", "frame": []}
            )
            features = [tuple(f) for f in line["features"]] or [()] * (len(line["boxes"]) + 1)
            attention = Attention(line["map"], Box(*line["frame"])) if line["map"] and line["frame"] else None
            found[unit].append(Candidate(image, None, activation, features[0], attention))
            for box, value, feature in zip(line["boxes"], line["activations"], features[1:], strict=True):
                found[unit].append(Candidate(image, Box(*box), value, feature))
    return found


def _key(unit: Unit, image: int) -> str:
    return f"{unit}@{image}"


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _by_row(asked: Mapping[str, Sequence[tuple[int, int]]], maps: Maps) -> dict[int, list[tuple[Unit, Map]]]:
    """The maps of each image of a batch."""
    found: dict[int, list[tuple[Unit, Map]]] = {}
    for layer, pairs in asked.items():
        for (row, index), values in zip(pairs, maps[layer], strict=True):
            found.setdefault(row, []).append((Unit(layer, index), values))
    return found
