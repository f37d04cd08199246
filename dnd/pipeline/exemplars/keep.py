"""How the exemplars of units are kept: the images in the store, and a row per unit with what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from dnd.api import Box, ProbingSet, Unit
from dnd.errors import DamagedError
from dnd.pipeline.exemplars.crop import MAP, Region
from dnd.probing.prefetch import map_ahead, open_again
from dnd.results.unit import Exemplar
from dnd.store.images import Store
from dnd.target.geometry import cut

_BOX = pa.list_(pa.float64())
EXEMPLAR = pa.struct(
    [
        ("image", pa.string()),
        ("source", pa.string()),
        ("box", _BOX),
        ("activation", pa.float32()),
        ("view", pa.string()),
        ("boxes", pa.list_(_BOX)),
        ("map", MAP),
    ]
)
"""`dnd.results.unit.Exemplar` but for the caption; null for what it does not have."""
EXEMPLARS = pa.schema(
    [
        ("key", pa.string()),  # str(Unit)
        ("exemplars", pa.list_(EXEMPLAR)),
        ("reason", pa.string()),  # why there are none, or ""
    ]
)
_VIEW = 512
"""Pixels that the view of a crop's source has along an edge at most."""
_Place = tuple[int, Box | str | None]
"""An image of the probing set, and which part of it: a crop, all of it, or "view"."""
Digests = Mapping[_Place, str]
"""Of what was put into the store."""


class KeptExemplars(Mapping[Unit, tuple[Exemplar, ...]]):
    """Each unit's exemplars, strongest first; none for a failed unit.

    They stay in Arrow's columns, and become objects when they are needed.
    """

    def __init__(self, units: Sequence[Unit], rows: pa.Table) -> None:
        """`rows` of the table of exemplars: all of these units, in any order."""
        places: dict[str, int] = {}
        for place, key in enumerate(rows.column("key").to_pylist()):
            places.setdefault(key, place)
        try:
            self._places = {unit: places[str(unit)] for unit in units}
        except KeyError as error:
            raise DamagedError(f"what was stored of {error} is gone", "Give the same command again.") from None
        columns = rows.combine_chunks()
        self._lists = columns.column("exemplars").chunk(0) if len(rows) else pa.array([], pa.list_(EXEMPLAR))
        self._digests, self._activations = (self._lists.values.field(name) for name in ("image", "activation"))
        self._reasons = columns.column("reason")

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._places)

    def __getitem__(self, unit: Unit) -> tuple[Exemplar, ...]:
        rows = self._lists[self._places[unit]].as_py()
        return tuple(
            Exemplar.model_validate({name: value for name, value in row.items() if value is not None}, strict=False)
            for row in rows
        )

    def images(self, unit: Unit) -> tuple[tuple[str, float], ...]:
        """Digest and pooled activation of each of its exemplars."""
        place = self._places[unit]
        start, stop = self._lists.offsets[place].as_py(), self._lists.offsets[place + 1].as_py()
        digests, activations = (column[start:stop].to_pylist() for column in (self._digests, self._activations))
        return tuple(zip(digests, activations, strict=True))

    def reason(self, unit: Unit) -> str:
        """Why it has no exemplars, or ""."""
        return str(self._reasons[self._places[unit]].as_py())


def images_named(exemplars: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Digests of all images that a row's exemplars name."""
    for one in exemplars:
        yield one["image"]
        if one["view"]:
            yield one["view"]


def keep_images(
    wanted: Mapping[int, Collection[Box | None]],
    store: Store,
    probing: ProbingSet,
    workers: int,
    advance: Callable[[int], None],
) -> Digests:
    """Put exemplars into the store, every probing image opened once: `wanted` are crops of each, None for the whole."""

    def put(item: tuple[int, Collection[Box | None]]) -> list[tuple[_Place, str]]:
        index, boxes = item
        image = open_again(probing, index)
        found: list[tuple[_Place, str]] = [
            ((index, box), store.put_image(cut(image, box) if box else image).digest) for box in boxes
        ]
        if any(boxes):
            image.thumbnail((_VIEW, _VIEW))  # after the crops were cut from it
            found.append(((index, "view"), store.put_image(image).digest))
        return found

    digests: dict[_Place, str] = {}
    for pairs in map_ahead(put, sorted(wanted.items(), key=lambda item: item[0]), workers, 2 * workers):
        digests.update(pairs)
        advance(1)
    return digests


def exemplar_row(
    unit: Unit,
    chosen: Sequence[Region],
    everything: Sequence[Region],
    broken: bool,
    digests: Digests,
    probing: ProbingSet,
) -> dict[str, Any]:
    """A unit's row. `everything` has the rest of its crops; `broken`: its activations are not finite."""
    return {
        "key": str(unit),
        "exemplars": [one.model_dump(by_alias=True) for one in _exemplars(chosen, everything, digests, probing)],
        "reason": "its activations are not finite (NaN or infinite)" if broken else "",
    }


def _exemplars(
    chosen: Sequence[Region], everything: Sequence[Region], digests: Digests, probing: ProbingSet
) -> Iterator[Exemplar]:
    maps = {region.image: region.map for region in everything if region.box is None}
    boxes: dict[int, list[Box]] = {}
    for region in everything:
        if region.box is not None:
            boxes.setdefault(region.image, []).append(region.box)
    for region in chosen:
        yield Exemplar(
            digest=digests[region.image, region.box],
            source=probing.image_name(region.image),
            box=region.box,
            activation=region.activation,
            view=None if region.box is None else digests[region.image, "view"],
            boxes=tuple(boxes.get(region.image, ())),
            map=maps.get(region.image),
        )
