"""The first pass in parts, by several processes that share a store: together they find what one would have.

Each part keeps a few more of everything than is asked for: an image that equals one of an earlier part is taken out
when the parts are merged, and what moves up in its place is there.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from dnd.errors import NotYetError, UsageError
from dnd.pipeline.exemplars.topk import Arrays, LayerTop, TopKPass, run_pass
from dnd.store.files import write_atomic

if TYPE_CHECKING:
    from dnd.api import ProbingSet
    from dnd.probing.prefetch import Loaded
    from dnd.target.hooked import HookedTarget

SLACK = 64
"""Duplicates of images of earlier parts among the strongest, or the most silent, of one unit in one part. Where there
are more the parts cannot be merged."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """The `number`-th, from 1, of `count` processes that share a run."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UsageError(f"there is no shard {self}", "--shard 2/8 is the second of eight.")

    @classmethod
    def read(cls, text: str) -> Shard:
        """Of "2/8"."""
        if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", text):
            raise UsageError(f"{text!r} is no shard", "--shard 2/8 is the second of eight.")
        number, count = map(int, text.split("/"))
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def images(self, n: int) -> range:
        """Its part of n images."""
        return range((self.number - 1) * n // self.count, self.number * n // self.count)

    def folder(self, run_folder: Path) -> Path:
        """Its own run folder, beside that of the whole run: they have one store."""
        if run_folder.name in ("", ".."):
            run_folder = Path(os.path.abspath(run_folder))
        if not run_folder.name:
            raise UsageError(f"a shard's folder lies beside --out, and nothing is beside {run_folder}", "Name another.")
        return run_folder.with_name(f"{run_folder.name}-{self.number}-of-{self.count}")


class ShardPass(TopKPass):
    """A pass over some of the images, which remembers enough to be merged."""

    def __init__(
        self, sizes: Mapping[str, int], n_images: int, keep: int, sample: int, seed: int, images: range
    ) -> None:
        super().__init__(sizes, n_images, keep + SLACK, sample + SLACK, seed)
        self.position, self.stop = images.start, images.stop
        self.lows = {layer: LayerTop(units, 2 + SLACK) for layer, units in sizes.items()}
        """Of the activations' negatives."""
        self.contents = np.zeros(len(images), np.uint64)
        """What names the pixels of each new image."""
        self.indices = np.full(len(images), -1)
        self._new = 0

    def is_new(self, loaded: Loaded, name: str) -> bool:
        new = super().is_new(loaded, name)
        if new:
            self.contents[self._new], self.indices[self._new] = loaded.content, loaded.index
            self._new += 1
        return new

    def add(self, indices: list[int], pooled: Mapping[str, torch.Tensor]) -> None:
        super().add(indices, pooled)
        for layer, low in self.lows.items():
            low.add(indices, -pooled[layer])

    def _arrays(self, layers: Collection[str]) -> Arrays:
        arrays = super()._arrays(layers) | {"contents": self.contents, "indices": self.indices}
        for layer in layers:
            low = self.lows[layer]
            arrays |= {f"low-values:{layer}": low.values.numpy(), f"low-images:{layer}": low.images.numpy()}
        return arrays

    def _restore(self, arrays: Arrays) -> None:
        contents, indices = arrays["contents"], arrays["indices"]
        lows = {
            layer: tuple(torch.from_numpy(arrays[f"low-{name}:{layer}"]) for name in ("values", "images"))
            for layer in self.lows
        }
        super()._restore(arrays)
        self.contents, self.indices, self._new = contents, indices, int((indices >= 0).sum())
        for layer, (values, images) in lows.items():
            self.lows[layer].values, self.lows[layer].images = values, images


class ShardFiles:
    """The parts of a pass over some layers, in the folder of its stage."""

    def __init__(self, folder: Path, tag: str, make: Callable[[range], ShardPass], n_images: int) -> None:
        """`tag` stands for the layers; `make` makes an empty part."""
        self._folder, self._tag, self._make, self._n = folder, tag, make, n_images

    def _file(self, shard: Shard) -> Path:
        return self._folder / f"shard-{shard.number}-of-{shard.count}-{self._tag}.npz"

    def _read(self, shard: Shard) -> ShardPass:
        return self._make(shard.images(self._n)).restore(self._file(shard))

    def run(
        self,
        shard: Shard,
        hooked: HookedTarget,
        probing: ProbingSet,
        workers: int,
        progress: Callable[[int], None],
    ) -> None:
        """Bring one part to its end."""
        own = self._read(shard)
        progress(own.position - shard.images(self._n).start)
        run_pass(own, hooked, probing, self._file(shard), workers, progress)
        own.save(self._file(shard), own.layers)

    def missing(self, count: int) -> list[Shard]:
        """Of so many parts those that are not done."""
        shards = (Shard(number, count) for number in range(1, count + 1))
        return [shard for shard in shards if not self._read(shard).done]

    def put(self, shard: Shard, content: bytes) -> None:
        """Keep a part that was made elsewhere: a file of its `save`."""
        write_atomic(self._file(shard), content)

    def merge(self, whole: TopKPass) -> bool:
        """Fill `whole` from a full set of parts, if there is one that can be merged."""
        for count in self._counts():
            shards = [self._read(Shard(number, count)) for number in range(1, count + 1)]
            if all(one.done for one in shards):
                if merge(whole, shards):
                    return True
                _LOG.info("%d shards have more than %d images of one another: one pass over all instead", count, SLACK)
        return False

    def check(self, shard: Shard) -> None:
        """NotYetError where parts beside this one are not done."""
        done = shard.count - len(self.missing(shard.count))
        if done < shard.count:
            raise NotYetError(
                f"the images of shard {shard} are done; {done} of {shard.count} shards are",
                "Once all are, the same command goes on with the units.",
            )

    def _counts(self) -> list[int]:
        """Of how many parts there is a file of each."""
        found: dict[int, set[int]] = defaultdict(set)
        for file in self._folder.glob(f"shard-*-of-*-{self._tag}.npz"):
            number, count = map(int, re.findall(r"[0-9]+", file.name)[:2])
            found[count].add(number)
        return [count for count, numbers in found.items() if len(numbers) == count]


def merge(whole: TopKPass, shards: Sequence[ShardPass]) -> bool:
    """Make `whole`, which is empty, what one pass over the images of all parts, in order, would have made it; False
    where they do not hold enough for that."""
    lost = _seen_before(shards)
    merged: dict[str, LayerTop] = {}
    for layer, top in whole.layers.items():
        tops = [_without(one.layers[layer], gone) for one, gone in zip(shards, lost, strict=True)]
        lows = [_without(one.lows[layer], gone) for one, gone in zip(shards, lost, strict=True)]
        if any(one is None for one in [*tops, *lows]):
            return False
        merged[layer] = LayerTop(top.values.shape[1], len(top.values))
        _fill(merged[layer], [one for one in tops if one], [one for one in lows if one])
        for one in shards:
            broken = merged[layer].broken
            merged[layer].broken = torch.where(broken < 0, one.layers[layer].broken, broken)
        merged[layer].fired = _fired(shards, layer) if not any(lost) else merged[layer].fired.fill_(-1)
    if not _merge_samples(whole, shards, lost):
        return False
    whole.layers = merged
    whole.position = whole.stop
    whole.unreadable = {name: reason for one in shards for name, reason in one.unreadable.items()}
    whole.narrow = sum(one.narrow for one in shards)
    whole.duplicates = sum(one.duplicates + len(gone) for one, gone in zip(shards, lost, strict=True))
    return True


def _fired(shards: Sequence[ShardPass], layer: str) -> torch.Tensor:
    counts = torch.stack([one.layers[layer].fired for one in shards])
    return torch.where((counts < 0).any(0), -1, counts.sum(0, dtype=torch.int32))


def _seen_before(shards: Sequence[ShardPass]) -> list[set[int]]:
    """The images of each part that equal one of an earlier part."""
    known, lost = np.zeros(0, np.uint64), []
    for one in shards:
        new = one.indices >= 0
        contents, indices = one.contents[new], one.indices[new]
        lost.append(set(indices[np.isin(contents, known)].tolist()))
        known = np.union1d(known, contents)
    return lost


Ranked = tuple[torch.Tensor, torch.Tensor]
"""Values, strongest first, and their images: (keep, units) each."""


def _without(top: LayerTop, lost: Collection[int]) -> Ranked | None:
    """What is left without some images; None where what would move up is not there."""
    gone = torch.isin(top.images, torch.tensor(sorted(lost), dtype=top.images.dtype))
    if int(gone.sum(0).max()) > SLACK:
        return None
    return top.values.masked_fill(gone, -torch.inf), top.images.masked_fill(gone, -1)


def _fill(top: LayerTop, strongest: Sequence[Ranked], weakest: Sequence[Ranked]) -> None:
    """Of equal images the earlier part's comes first, as in one pass."""
    values, images = (torch.cat(one) for one in zip(*strongest, strict=True))
    order = values.sort(dim=0, descending=True, stable=True).indices[: len(top.values)]
    top.values[: len(order)], top.images[: len(order)] = values.gather(0, order), images.gather(0, order)
    negatives, images = (torch.cat(one) for one in zip(*weakest, strict=True))
    top.lowest = -negatives.amax(0)
    top.n_lowest = ((negatives == -top.lowest) & (images >= 0)).sum(0, dtype=torch.int32)


def _merge_samples(whole: TopKPass, shards: Sequence[ShardPass], lost: Sequence[Collection[int]]) -> bool:
    """The images with the lowest lots of all."""
    for one, gone in zip(shards, lost, strict=True):
        images, rows = one.sample_images(), one.sample_order().tolist()
        if sum(image in gone for image in images) > SLACK:
            return False
        for image, row in zip(images, rows, strict=True):
            if image not in gone:
                whole.draw(image, {layer: sample[row] for layer, sample in one.sample.items()})
    return True
