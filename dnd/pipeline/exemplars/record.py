"""Activations of all units on all probing images, written by the first pass itself for a method that needs them all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dnd.errors import StoreError
from dnd.store.files import how_to_go_on
from dnd.store.keys import digest_of

_OPENED = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
"""No link is followed, and no pipe waited for."""


class Record:
    """A file per layer: a row of float32 per probing image, its units and then 1; 0 for an image that was left out."""

    def __init__(self, folder: Path, sizes: Mapping[str, int], n_images: int) -> None:
        self._folder, self._sizes, self._n_images = folder, dict(sizes), n_images

    def _file(self, layer: str, state: str = "all") -> Path:
        return self._folder / f"{state}-{digest_of(layer)[:16]}.f32"

    def has(self, layer: str) -> bool:
        """Whether its file is whole."""
        file = self._file(layer)
        return file.is_file() and file.stat().st_size == self._n_images * (self._sizes[layer] + 1) * 4

    def of(self, layer: str) -> npt.NDArray[np.float32]:
        """(n_images, n_units + 1), mapped from disk."""
        shape = self._n_images, self._sizes[layer] + 1
        found: npt.NDArray[np.float32] = np.memmap(self._file(layer), "<f4", "r", shape=shape)
        return found

    def images(self) -> list[int]:
        """Indices of the images that every layer has."""
        there = np.ones(self._n_images, np.bool_)
        for layer in self._sizes:
            there &= self.of(layer)[:, -1] == 1
        return [int(index) for index in np.flatnonzero(there)]

    def add(self, indices: list[int], pooled: Mapping[str, torch.Tensor]) -> None:
        """Some images of the pass."""
        for layer, values in pooled.items():
            rows = np.concatenate([values.numpy(), np.ones((len(indices), 1), np.float32)], 1).astype("<f4", copy=False)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                number = os.open(self._file(layer, "partial"), _OPENED, 0o666)
                with os.fdopen(number, "wb") as file:
                    for index, row in zip(indices, rows, strict=True):
                        file.seek(index * row.nbytes)
                        file.write(row.tobytes())
            except OSError as error:
                raise StoreError(
                    f"cannot write the activations of {layer}: {error.strerror}", how_to_go_on(error)
                ) from error

    def finish(self, layer: str) -> None:
        """The pass is over."""
        partial = self._file(layer, "partial")
        with partial.open("r+b") as file:
            file.truncate(self._n_images * (self._sizes[layer] + 1) * 4)  # images left out at the end have no bytes yet
            os.fsync(file.fileno())
        partial.replace(self._file(layer))
