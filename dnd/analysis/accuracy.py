"""A classifier's answers on a labelled data set, whole and without some of its units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dnd.analysis.ablate import Pass, Units, without
from dnd.api import ProbingSet
from dnd.errors import UsageError
from dnd.files import read_text
from dnd.probing.prefetch import map_ahead
from dnd.target.layout import Reading, first_tensor
from dnd.target.preprocess import Preprocess, stack

if TYPE_CHECKING:
    from collections.abc import Callable

_BATCH = 32
_WORKERS = 2
_ACTIVE = 0.01


@dataclass(frozen=True)
class Labelled:
    """A probing set whose images have classes."""

    probing: ProbingSet
    names: tuple[str, ...]
    """Of the target's outputs, in order."""
    indices: tuple[int, ...]
    """Images that have a class."""
    classes: npt.NDArray[np.int64]
    """Of each of those, its place in `names`."""


def labelled(probing: ProbingSet, classes: Path | None) -> Labelled:
    """The set with its classes. Raises UsageError where it has none, or one of them is missing in `classes`."""
    labels = [probing.label(index) for index in range(len(probing))]
    here = sorted({label for label in labels if label is not None})
    if len(here) < 2:
        raise UsageError(
            "the images to evaluate on are not of several classes" if here else "the images have no classes",
            "Name a folder with one folder of images per class, or a probing set that knows its images' classes.",
        )
    names = here if classes is None else _read_classes(classes)
    unknown = [label for label in here if label not in names]
    if unknown:
        raise UsageError(
            f"{classes} does not name the class {unknown[0]!r}", f"It needs a line for each of {', '.join(here[:8])}."
        )
    place = {name: at for at, name in enumerate(names)}
    indices = tuple(index for index, label in enumerate(labels) if label is not None)
    return Labelled(probing, tuple(names), indices, np.array([place[str(labels[index])] for index in indices]))


def _read_classes(file: Path) -> list[str]:
    try:
        names = [line.strip() for line in read_text(file, "utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    while names and not names[-1]:
        names.pop()
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise UsageError(f"{file} names {twice[0]!r} twice", "One class a line, in the order of the target's outputs.")
    return names


def find_active(
    module: torch.nn.Module,
    preprocess: Preprocess,
    data: Labelled,
    layers: Sequence[str],
    device: str,
    readings: Mapping[str, Reading] = MappingProxyType({}),
) -> dict[str, list[int]]:
    """Layer -> units that do something on the data set: somewhere at least `_ACTIVE` of the layer's largest value."""
    parts, most = dict(module.named_modules()), dict[str, npt.NDArray[np.float32]]()
    now = Pass()

    def watch(layer: str) -> Callable[..., None]:
        def hook(part: torch.nn.Module, inputs: object, output: object) -> None:
            found = first_tensor(output)
            units = None if found is None else now.units(layer, part, output, found, readings.get(layer))
            if units is not None:
                values = units.transpose(0, 1).flatten(1).abs().amax(1).float().cpu().numpy()
                most[layer] = np.maximum(most.get(layer, values), values)

        return hook

    missing = [layer for layer in layers if layer not in parts]
    if missing:
        raise UsageError(f"{type(module).__name__} has no layer {missing[0]!r}", "Is it the network of this run?")
    with ExitStack() as undo, torch.no_grad():
        undo.callback(module.register_forward_pre_hook(now.begin).remove)
        for layer in layers:
            undo.callback(parts[layer].register_forward_hook(watch(layer)).remove)
        for batch, _ in _batches(preprocess, data, device):
            module(batch)
    return {
        layer: np.flatnonzero((values > 0) & (values >= _ACTIVE * values.max())).tolist()
        for layer, values in most.items()
    }


def answers(
    module: torch.nn.Module,
    preprocess: Preprocess,
    data: Labelled,
    masks: Sequence[Units],
    device: str,
    readings: Mapping[str, Reading] = MappingProxyType({}),
) -> npt.NDArray[np.bool_]:
    """Which images are classified right under each mask: (n_masks, n_images). Every image is read once."""
    right = np.zeros((len(masks), len(data.indices)), np.bool_)
    at = 0
    with torch.no_grad():
        for batch, truth in _batches(preprocess, data, device):
            for row, units in enumerate(masks):
                with without(module, units, readings):
                    scores = _scores(module(batch), len(batch), len(data.names))
                right[row, at : at + len(batch)] = scores.argmax(1).cpu().numpy() == truth
            at += len(batch)
    return right


def _scores(output: Any, rows: int, classes: int) -> torch.Tensor:
    found = getattr(output, "logits", None)
    found = found if isinstance(found, torch.Tensor) else first_tensor(output)
    if found is None or found.ndim != 2 or found.shape[0] != rows:
        shape = type(output).__name__ if found is None else tuple(found.shape)
        raise UsageError(
            f"the target is no classifier: it gives {shape} for {rows} images", "It must give a score per class."
        )
    if found.shape[1] != classes:
        raise UsageError(
            f"the target tells {found.shape[1]} classes apart, the data set has {classes}",
            "Give --classes FILE: the target's classes, one a line in the order of its outputs.",
        )
    return found


def _batches(
    preprocess: Preprocess, data: Labelled, device: str
) -> Iterator[tuple[torch.Tensor, npt.NDArray[np.int64]]]:
    def load(index: int) -> torch.Tensor:
        try:
            return preprocess(data.probing.open(index))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot read {data.probing.image_name(index)}: {error}", "Take it out of the data set."
            ) from error

    loaded, waiting, at = map_ahead(load, data.indices, _WORKERS, 2 * _BATCH), [], 0
    for tensor in loaded:
        waiting.append(tensor)
        if len(waiting) == _BATCH or at + len(waiting) == len(data.indices):
            yield stack(waiting).to(device), data.classes[at : at + len(waiting)]
            at, waiting = at + len(waiting), []


def by_class(right: npt.NDArray[np.bool_], data: Labelled) -> Mapping[str, float]:
    """Accuracy for each class that the data set has."""
    return {
        name: float(right[data.classes == place].mean())
        for place, name in enumerate(data.names)
        if (data.classes == place).any()
    }
