"""The first pass: every probing image through the target once, of which each unit keeps its strongest.

What is kept in memory does not grow with the number of images, but for 16 bytes each, to know duplicates by and for the
lots of the sample, and is saved now and then, so that a killed pass resumes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch

from dnd.api import ProbingSet, derive_seed
from dnd.errors import StoppedError, UsageError
from dnd.pipeline.exemplars.record import Record
from dnd.probing.prefetch import Loaded, load_ahead
from dnd.store.files import write_atomic
from dnd.target.hooked import HookedTarget, Pooled
from dnd.target.preprocess import stack

_SAVE_SHARE = 0.05
"""Saving may take this part of the time."""
_LEAST_SECONDS = 1.0
"""Between two saves."""
_UNITS_AT_ONCE = 8192
_LOG = logging.getLogger(__name__)
Arrays = dict[str, npt.NDArray[Any]]


class LayerTop:
    """A layer's strongest images so far."""

    def __init__(self, units: int, keep: int) -> None:
        self.values = torch.full((keep, units), -torch.inf)
        """Strongest first."""
        self.images = torch.full((keep, units), -1, dtype=torch.int32)
        """Index of each; -1 while there are fewer images than places."""
        self.lowest = torch.full((units,), torch.inf)
        self.n_lowest = torch.zeros(units, dtype=torch.int32)
        """Images with that activation."""
        self.broken = torch.full((units,), -1, dtype=torch.int64)
        """The first image on which a unit's activation was not finite, or -1."""
        self.fired = torch.zeros(units, dtype=torch.int32)
        """On how many images it was not zero; -1 where that is not known."""

    def floor(self, index: int | slice = slice(None)) -> torch.Tensor:
        """The activation at which a unit, or each (U,), is silent: its lowest, if on several images; or -inf.

        A unit that fires rarely is equally silent on all other images: those are no evidence of what it responds to.
        """
        return torch.where(self.n_lowest[index] > 1, self.lowest[index], -torch.inf)

    def above_floor(self) -> torch.Tensor:
        """On how many of the images kept each unit is not silent, int64 (U,)."""
        return ((self.images >= 0) & (self.values > self.floor())).sum(0)

    def add(self, indices: list[int], values: torch.Tensor) -> None:
        """Take in images in ascending order of index, values (B, U); of equal images the first wins."""
        for start in range(0, values.shape[1], _UNITS_AT_ONCE):
            self._add(indices, values[:, start : start + _UNITS_AT_ONCE], slice(start, start + _UNITS_AT_ONCE))

    def _add(self, indices: list[int], values: torch.Tensor, part: slice) -> None:
        finite = values.isfinite()
        if not finite.all():
            worst = torch.tensor(indices)[(~finite).int().argmax(0)]
            broken = self.broken[part]
            self.broken[part] = torch.where((broken < 0) & ~finite.all(0), worst, broken)
            values = torch.where(finite, values, -torch.inf)
        lowest = torch.minimum(self.lowest[part], values.amin(0))
        before = torch.where(lowest < self.lowest[part], 0, self.n_lowest[part])
        self.n_lowest[part] = before + (values == lowest).sum(0, dtype=torch.int32)
        self.lowest[part] = lowest
        fired = self.fired[part]
        self.fired[part] = torch.where(fired < 0, fired, fired + (values != 0).sum(0, dtype=torch.int32))
        strongest, images = self.values[:, part], self.images[:, part]
        changed = values.amax(0) > strongest[-1]
        if changed.any():
            joined = torch.cat([strongest[:, changed], values[:, changed]])
            order = joined.sort(dim=0, descending=True, stable=True).indices[: len(strongest)]
            places = torch.tensor(indices, dtype=images.dtype)[:, None].expand(len(indices), joined.shape[1])
            strongest[:, changed] = joined.gather(0, order)
            images[:, changed] = torch.cat([images[:, changed], places]).gather(0, order)

    def arrays(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in ("values", "images", "lowest", "n_lowest", "broken", "fired")}


class TopKPass:
    """Where the pass is, and what it found for some layers."""

    def __init__(self, sizes: Mapping[str, int], n_images: int, keep: int, sample: int, seed: int) -> None:
        sample = min(sample, n_images)
        self.layers = {layer: LayerTop(units, keep) for layer, units in sizes.items()}
        self.sample = {layer: np.zeros((sample, units), np.float32) for layer, units in sizes.items()}
        """Activations on the random sample: (sample, units); see `sample_order`."""
        self.n_images = n_images
        self.position = 0
        """Images before this one are in."""
        self.stop = n_images
        """Where it ends."""
        self.unreadable: dict[str, str] = {}
        self.duplicates = 0
        self.narrow = 0
        """Images that use little of their 16 or 32 bits."""
        self._seen = Seen()
        # Each image has a lot; the sample is the images with the lowest among those that can be read.
        self._lots = np.random.default_rng(derive_seed(seed, "sample")).permutation(n_images)
        self._sample_lots = np.full(sample, n_images)
        self._sample_images = np.full(sample, -1)

    @property
    def done(self) -> bool:
        return self.position == self.stop

    def sample_order(self) -> npt.NDArray[np.int64]:
        """Rows of `sample` in a random order, without empty ones."""
        order = np.argsort(self._sample_lots)
        return order[self._sample_images[order] >= 0]

    def sample_images(self) -> list[int]:
        """Index of each image of the sample, in the same order."""
        return [int(i) for i in self._sample_images[self.sample_order()]]

    def is_new(self, loaded: Loaded, name: str) -> bool:
        """Note an image; False for one that cannot be read or equals an earlier one."""
        if loaded.tensor is None:
            self.unreadable[name] = loaded.problem
            return False
        new = self._seen.add(loaded.content)
        self.duplicates += not new
        self.narrow += new and loaded.narrow
        return new

    def add(self, indices: list[int], pooled: Mapping[str, torch.Tensor]) -> None:
        for layer, top in self.layers.items():
            top.add(indices, pooled[layer])
        for row, index in enumerate(indices):
            self.draw(index, {layer: pooled[layer][row].numpy() for layer in self.layers})

    def draw(self, index: int, activations: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Take an image into the sample, with each layer's activations on it, (U,), if its lot is low enough."""
        slot = int(self._sample_lots.argmax())
        if self._lots[index] < self._sample_lots[slot]:
            self._sample_lots[slot], self._sample_images[slot] = self._lots[index], index
            for layer, sample in self.sample.items():
                sample[slot] = activations[layer]

    def save(self, file: Path, layers: Collection[str]) -> None:
        """As numpy's .npz."""
        arrays = self._arrays(layers)
        write_atomic(file, lambda opened: np.savez(opened, **cast(Any, arrays)))

    def _arrays(self, layers: Collection[str]) -> Arrays:
        facts = {"position": self.position, "unreadable": self.unreadable, "duplicates": self.duplicates}
        facts["narrow"] = self.narrow
        arrays: Arrays = {
            "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8),
            "seen": self._seen.array() if not self.done else np.zeros(0, np.uint64),
            "lots": self._sample_lots,
            "images": self._sample_images,
        }
        for layer in layers:
            arrays |= {f"{name}:{layer}": tensor.numpy() for name, tensor in self.layers[layer].arrays().items()}
            arrays[f"sample:{layer}"] = self.sample[layer]
        return arrays

    def restore(self, file: Path) -> Self:
        """Go on from a file of `save`, if it is there and whole."""
        try:
            with np.load(file) as arrays:
                self._restore(arrays)
        except Exception:  # damaged bytes make the reader raise anything
            if file.exists():
                _LOG.warning("%s is damaged: what it held is computed again", file)
        return self

    def _restore(self, arrays: Arrays) -> None:
        """All or, where something is missing, nothing."""
        facts = json.loads(arrays["facts"].tobytes())
        found = {
            layer: {name: torch.from_numpy(arrays[f"{name}:{layer}"]) for name in top.arrays() if name != "fired"}
            for layer, top in self.layers.items()
        }
        for layer, top in self.layers.items():  # files of 0.1.0 have none
            counted = f"fired:{layer}" in arrays
            found[layer]["fired"] = torch.from_numpy(arrays[f"fired:{layer}"]) if counted else top.fired.fill_(-1)
        seen, lots, images = (arrays[name] for name in ("seen", "lots", "images"))
        samples = {layer: arrays[f"sample:{layer}"] for layer in self.sample}
        if any(one.shape != self.sample[layer].shape for layer, one in samples.items()):
            raise ValueError("a sample of another size")
        for layer, tensors in found.items():
            vars(self.layers[layer]).update(tensors)
        self.sample = samples
        self.position, self.unreadable, self.duplicates = facts["position"], facts["unreadable"], facts["duplicates"]
        self.narrow = facts.get("narrow", 0)
        self._seen, self._sample_lots, self._sample_images = Seen(seen), lots, images


Observe = Callable[[torch.Tensor, list[int], Mapping[str, LayerTop]], Pooled]
"""Gives the pooled activations on some images, which the layers have not taken in yet."""


def run_pass(
    topk: TopKPass,
    hooked: HookedTarget,
    probing: ProbingSet,
    file: Path,
    workers: int,
    progress: Callable[[int], None],
    record: Record | None = None,
    observe: Observe | None = None,
) -> None:
    """Bring a pass to its end; `file` holds what is done until then. `record` gets all activations. `observe` is
    called in place of `hooked.pooled`."""
    saved, cost = time.monotonic(), 0.0
    progress(topk.position)
    batch: list[Loaded] = []
    for loaded in load_ahead(probing, hooked, range(topk.position, topk.stop), workers):
        if topk.is_new(loaded, probing.image_name(loaded.index)):
            batch.append(loaded)
        last = loaded.index + 1 == topk.stop
        if not last and len(batch) < hooked.batch_size:
            continue
        if batch:
            inputs = stack([one.tensor for one in batch if one.tensor is not None])
            indices = [one.index for one in batch]
            pooled = observe(inputs, indices, topk.layers) if observe else hooked.pooled(inputs)
            topk.add(indices, pooled)
            if record:
                record.add(indices, {layer: pooled[layer] for layer in topk.layers})
        new, topk.position = loaded.index + 1 - topk.position, loaded.index + 1
        batch = []
        try:
            progress(new)
        except StoppedError:
            topk.save(file, topk.layers)
            raise
        if time.monotonic() - saved > max(_LEAST_SECONDS, cost / _SAVE_SHARE) and not last:
            began = time.monotonic()
            topk.save(file, topk.layers)
            saved = time.monotonic()
            cost = saved - began


def check_readable(topk: TopKPass) -> None:
    """UsageError where a finished pass has seen no image."""
    if not topk.sample_images():
        name, reason = next(iter(topk.unreadable.items()))
        raise UsageError(
            f"none of the {topk.n_images} probing images can be read; the first, {name}: {reason}",
            "Give --probe a folder of images that open.",
        )


Names = npt.NDArray[np.uint64]


_LATEST = 65_536
"""So many are in a set before they join the array; in a set each takes 70 bytes."""


class Seen:
    """Distinct 64-bit names, 8 bytes each."""

    def __init__(self, names: Names | None = None) -> None:
        """With some, in any order."""
        self._sorted: Names = np.unique(np.zeros(0, np.uint64) if names is None else names)
        self._latest: set[int] = set()

    def add(self, name: int) -> bool:
        """Note a name; False for one that was there."""
        place = int(np.searchsorted(self._sorted, np.uint64(name)))
        if name in self._latest or (place < len(self._sorted) and int(self._sorted[place]) == name):
            return False
        self._latest.add(name)
        if len(self._latest) >= _LATEST:
            self.array()
        return True

    def array(self) -> Names:
        """All of them, in ascending order."""
        if self._latest:
            self._sorted = np.concatenate([self._sorted, np.fromiter(self._latest, np.uint64)])
            self._sorted.sort()
            self._latest = set()
        return self._sorted
