"""A target under watch: its layers' activations for batches of images, nothing about it changed for good.

    with HookedTarget(module, preprocess, ["layer4", "fc"], device="cuda") as hooked:
        hooked.layer_sizes()                    # {"layer4": 2048, "fc": 1000}
        hooked.pooled_images(images)["layer4"]  # float32 (n_images, 2048)

The network always runs on the same number of images, the last few padded: on a CPU on 16, whatever the batch size,
on a GPU on `batch_size`. With that, a ResNet, a ViT, an MLP and a plain CNN gave the same bits for an image in any
place of the batch on CPUs, while batches of other sizes differed by up to 1e-6 of the layer's scale. Where a little
noise remains (a linear layer of five units: 2e-7), most of it is rounded away, see `dnd.target.layout.rounded`.
With several devices each has a copy of the network, and those batches are dealt to them.
"""

from __future__ import annotations

import copy
import queue
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import torch

from dnd.api import Unit, is_device_lost, is_out_of_memory
from dnd.config.run import LayerSettings
from dnd.errors import DeviceError, DndError, UsageError
from dnd.runtime.cores import threads_of_each
from dnd.runtime.devices import free_memory, place_of, reason_of
from dnd.target.layers import check_network, find_layer
from dnd.target.layout import Pooling, Reading, pool
from dnd.target.preprocess import Preprocess, probe_image, stack
from dnd.target.reading import in_words, read_layers
from dnd.target.replica import Replica

if TYPE_CHECKING:
    from PIL.Image import Image

_STEP = 16
"""Images in a forward pass on a CPU; on a GPU they are a multiple of it."""
_MOST = 8 << 20
"""Bytes of pooled activations in a batch on a CPU."""

Pooled = dict[str, torch.Tensor]
Maps = dict[str, npt.NDArray[np.float32]]
Wanted = Mapping[str, Sequence[tuple[int, int]]]
"""Layer -> (row of the batch, unit) pairs."""
Above = list[tuple[str, list[int], list[int], npt.NDArray[np.float32]]]
"""Of a layer the rows of some pairs, their units and their maps (n_pairs, h, w), or (n_pairs, 0) where it has none."""
Take = Callable[[str, int, torch.Tensor, torch.Tensor], None]
"""Gets a layer, the place of the first image, the units of some images and these pooled."""


class HookedTarget:
    """Hooks on some layers of a module in eval mode; leaving it restores mode, device and hooks.

    `preprocess` turns an RGB image into the module's input, (C, H, W) of one size; it is called from several threads.
    `reads` says how layers are read where their shapes do not show it.
    """

    seconds: float
    """Time spent inside the target so far."""
    batch_size: int
    """Images to hand over at once, for all devices: each gets a multiple of 16, fewer where a GPU's
    memory is short or the units are very many."""

    def __init__(
        self,
        module: torch.nn.Module,
        preprocess: Preprocess,
        layers: Sequence[str],
        *,
        device: str | Sequence[str] = "cpu",
        pooling: Pooling = "mean",
        batch_size: int = 64,
        reads: LayerSettings | None = None,
    ) -> None:
        check_network(module)
        self.module, self.preprocess, self.pooling = module, preprocess, pooling
        self.devices = [torch.device(one) for one in ([device] if isinstance(device, str) else device)]
        self.device = self.devices[0]
        self.layers = {layer: find_layer(module, layer) for layer in layers}
        self.reads = reads or LayerSettings()
        self.readings: dict[str, Reading] = {}
        """How each layer is read, once it was entered."""
        self._rows = _whole(batch_size)
        self.batch_size = self._rows * len(self.devices)
        self.seconds = 0.0
        self._replicas: list[Replica] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._undo = ExitStack()

    # --- around the work ---

    name = "target"
    """In messages."""

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            if self.device.type == "cuda":
                undo.enter_context(
                    torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
                )
            if self.device.type == "cpu":
                undo.enter_context(threads_of_each(len(self.devices)))
            settings = {layer: self.reads.of(number) for number, layer in enumerate(self.layers)}
            copies = [_copied(self.module, self.device) for _ in self.devices[1:]]
            self._replicas = [
                undo.enter_context(Replica(module, device, settings))
                for module, device in zip([self.module, *copies], self.devices, strict=True)
            ]
            undo.callback(self._replicas.clear)
            self._idle: queue.SimpleQueue[Replica] = queue.SimpleQueue()
            for replica in self._replicas:
                self._idle.put(replica)
            self._threads = undo.enter_context(ThreadPoolExecutor(len(self._replicas)))
            self.readings = self.readings or read_layers(self._replicas[0], self._made_up())
            for replica in self._replicas:
                replica.readings = self.readings
            self.use_batches_of(self._rows)
            self._check_pooling()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._undo.close()
            if self.device.type == "cuda":
                free_memory()  # worker processes cannot have what this one only keeps for later
        except RuntimeError as error:
            if not is_device_lost(error):  # from a device that is gone nothing can be had back
                raise

    def use_batches_of(self, batch_size: int) -> None:
        """Take that many images at once on each device, or fewer if a GPU has no room; inside `with`.

        A made-up image goes through the target, which also shows the layers' shapes.
        """
        self._rows = _whole(batch_size)
        image = self._made_up()
        for replica in self._replicas:
            rows = self._rows if replica.device.type == "cuda" else 2
            while not self._fits(replica, image.expand(rows, *image.shape)):
                if rows <= _STEP:
                    raise UsageError(f"the target does not fit into {replica.device}", "Choose another --device.")
                rows = self._rows = _whole(rows // 2)
                torch.cuda.empty_cache()
        if self.device.type == "cpu":  # where a forward pass has its own size in any case
            self._rows = max(_STEP, min(self._rows, _MOST // (4 * sum(self.layer_sizes().values())) // _STEP * _STEP))
        self.batch_size = self._rows * len(self._replicas)

    def _check_pooling(self) -> None:
        flat = [layer for layer, shape in self._shapes.items() if len(shape) == 3]
        if self.pooling == "centre" and flat:
            raise UsageError(
                f"exemplars.pooling = centre needs a map, and layer {flat[0]} has none: {self.readings[flat[0]]}",
                "Choose mean, max or top.",
            )

    def _fits(self, replica: Replica, batch: torch.Tensor) -> bool:
        with in_words(replica, batch):
            try:
                replica.forward(batch, self._note_shape)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                return False
        return True

    def _made_up(self) -> torch.Tensor:
        """The target's input for a made-up image."""
        try:
            return self.prepare(probe_image())
        except DndError:
            raise
        except Exception as error:
            raise UsageError(
                f"the target's preprocess fails for a made-up RGB image (160x120): {_told(error)}",
                "It must take any RGB image: synthetic ones have nothing in `image.info`.",
            ) from error

    def _note_shape(self, name: str, place: int, units: torch.Tensor) -> None:
        self._shapes[name] = tuple(units.shape)

    # --- what there is ---

    def layer_sizes(self) -> dict[str, int]:
        """Units of each layer."""
        return {name: self._shapes[name][1] for name in self.layers}

    def has_maps(self, layer: str) -> bool:
        """Whether the layer's units have an activation map."""
        return len(self._shapes[layer]) == 4

    def map_shape(self, layer: str) -> tuple[int, ...]:
        """(h, w) of a layer's activation maps, or () where its units have none."""
        return self._shapes[layer][2:] if self.has_maps(layer) else ()

    def check_units(self, units: Iterable[Unit]) -> None:
        """Raise UsageError for a unit that does not exist."""
        sizes = self.layer_sizes()
        for unit in units:
            size = sizes[unit.layer]
            if not 0 <= unit.index < size:
                raise UsageError(
                    f"layer {unit.layer} has no unit {unit.index}: its {size} units are 0 to {size - 1}",
                    f"Choose within 0-{size - 1}, or `--units all`.",
                )

    # --- activations ---

    def prepare(self, image: Image) -> torch.Tensor:
        """The target's input for an RGB image: (C, H, W), on the CPU."""
        tensor = self.preprocess(image)
        if not isinstance(tensor, torch.Tensor) or tensor.ndim != 3 or not tensor.is_floating_point():
            what = (
                f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            )
            raise UsageError(
                f"the target's preprocess gives {what}",
                "It must give a float tensor (C, H, W). A video network needs a module around it that repeats images.",
            )
        return tensor.detach().cpu()

    def observe(self, batch: torch.Tensor, wanted: Wanted) -> tuple[Pooled, Maps]:
        """(B, C, H, W), B <= batch_size, through the target once: `pooled` and `maps` at once."""
        maps: Maps = {}

        def take(layer: str, start: int, units: torch.Tensor, pooled: torch.Tensor) -> None:
            pairs = wanted.get(layer, ())
            places = [place for place, (row, _) in enumerate(pairs) if start <= row < start + len(units)]
            if places:
                found = units[[pairs[p][0] - start for p in places], [pairs[p][1] for p in places]]
                whole = maps.setdefault(layer, np.empty((len(pairs), *found.shape[1:]), np.float32))
                whole[places] = found.float().cpu().numpy()

        return self._observe(batch, take), maps

    def observe_above(self, batch: torch.Tensor, levels: Mapping[str, torch.Tensor]) -> tuple[Pooled, Above]:
        """`pooled`, and the maps of units whose activation on an image is above a level each: layer -> (U,)."""
        found: Above = []

        def take(layer: str, start: int, units: torch.Tensor, pooled: torch.Tensor) -> None:
            if layer in levels:
                rows, indices = (pooled > levels[layer]).nonzero(as_tuple=True)
                maps = units[rows, indices].float().cpu().numpy() if units.ndim == 4 else np.empty((len(rows), 0), "f4")
                found.append((layer, (rows + start).tolist(), indices.tolist(), maps))

        return self._observe(batch, take), found

    def _observe(self, batch: torch.Tensor, take: Take) -> Pooled:
        began = time.perf_counter()
        rows = _STEP if self.device.type == "cpu" else self._rows

        def run(start: int) -> Pooled:
            return self._run(batch[start : start + rows], rows, start, take)

        deal: Callable[..., Iterable[Pooled]] = self._threads.map if len(self._replicas) > 1 else map
        try:
            parts = list(deal(run, range(0, len(batch), rows)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) and not is_device_lost(error):
                raise
            raise DeviceError(
                f"the target cannot go on: {reason_of(error)}",
                "What is computed is kept: the same command goes on from there once the device works and has room.",
            ) from error
        self.seconds += time.perf_counter() - began
        if len(parts) == 1:
            return parts[0]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in self.layers}

    def _run(self, part: torch.Tensor, rows: int, first: int, take: Take) -> Pooled:
        """A batch on the next free device. `take` is called for others at the same time."""
        latest: defaultdict[str, list[torch.Tensor]] = defaultdict(list)

        def read(layer: str, place: int, units: torch.Tensor) -> None:
            pooled = pool(units, self.pooling)
            latest[layer].append(pooled)
            rest = len(part) - place  # what fills a batch up is not seen
            if rest > 0:
                take(layer, first + place, units[:rest], pooled[:rest])

        replica = self._idle.get()
        try:
            replica.forward(_padded(part, rows), read)
        finally:
            self._idle.put(replica)
        return {layer: torch.cat(pieces)[: len(part)] for layer, pieces in latest.items()}

    def pooled(self, batch: torch.Tensor) -> Pooled:
        """{layer: float32 (B, U)} on the CPU; not finite where the target is not."""
        return self.observe(batch, {})[0]

    def maps(self, batch: torch.Tensor, wanted: Wanted) -> Maps:
        """Activation maps of some (row of the batch, unit) pairs: {layer: float32 (n_pairs, h, w)}, pairs in order."""
        return self.observe(batch, wanted)[1]

    def pooled_images(self, images: Sequence[Image]) -> dict[str, npt.NDArray[np.float32]]:
        """Pooled activations of any number of RGB images: {layer: float32 (n_images, U)}."""
        with ThreadPoolExecutor(4) as threads:
            parts = [
                self.pooled(stack(list(threads.map(self.prepare, images[start : start + self.batch_size]))))
                for start in range(0, len(images), self.batch_size)
            ]
        if len(parts) == 1:
            return {layer: values.numpy() for layer, values in parts[0].items()}
        return {
            layer: np.concatenate([np.zeros((0, size), np.float32), *(part[layer].numpy() for part in parts)])
            for layer, size in self.layer_sizes().items()
        }


def _told(error: Exception) -> str:
    """ "KeyError: 'bands' (my_models.py:12)"."""
    return f"{reason_of(error)} ({place_of(error)})"


def _copied(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """A copy with hooks of its own; on a CPU it shares the weights, which a forward pass only reads."""
    shared = module.parameters() if device.type == "cpu" else ()
    try:
        return copy.deepcopy(module, {id(weight): weight for weight in shared})
    except Exception as error:
        raise UsageError(
            f"the target cannot be copied to a second device: {reason_of(error)}", "Choose one device with --device."
        ) from error


def _whole(rows: int) -> int:
    return max(1, -(-rows // _STEP)) * _STEP


def _padded(batch: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(batch)
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
