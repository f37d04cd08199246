"""The toy world's captioner and generator with faults that a setting turns on, for worker processes: no torch here.

A fault strikes at chosen items: `hang` sleeps, `die` kills its own process, `lose` raises what torch raises when a
GPU is gone, `full` when its memory is. With `once`, a file, it strikes until that file is there, which it makes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dnd import api

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class FaultConfig(api.Config):
    batch_size: int = 4
    fault: str = ""
    on: str = ""
    """The colour it strikes at; empty for every item."""
    once: Path | None = None
    log: Path | None = None
    """Gets a line for each load and each call: device, process, number of items."""


class Faulty(api.Backend):
    config: FaultConfig

    def __init__(self, config: FaultConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size

    def load(self) -> None:
        self._note("load", 0)
        if self.config.fault == "full at load":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if self.config.fault == "gone" and self.config.once is not None and self.config.once.exists():
            raise RuntimeError("CUDA error: no CUDA-capable device is detected")

    def close(self) -> None:
        if self.config.fault == "lose":
            raise RuntimeError("CUDA error: unspecified launch failure, once more")

    def chosen(self) -> dict[str, Any]:
        return {"device": self.runtime.device}

    def _note(self, what: str, n: int) -> None:
        if self.config.log is not None:
            with self.config.log.open("a") as file:
                file.write(f"{what} {self.runtime.device} {os.getpid()} {n}\n")

    def _answering(self, what: str, words: Sequence[str]) -> None:
        self._note(what, len(words))
        config = self.config
        if not config.fault or (config.on and config.on not in words):
            return
        if config.once is not None:
            if config.once.exists() and config.fault != "gone":
                return
            config.once.touch()
        if config.fault == "hang":
            time.sleep(60)
        elif config.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif config.fault in ("lose", "gone"):
            raise RuntimeError("CUDA error: unspecified launch failure")
        elif config.fault == "full":
            raise MemoryError
        elif config.fault == "exit":
            raise SystemExit(0)
        elif config.fault == "refuse":
            raise api.ItemError(f"cannot do {config.on}", "a hint")


def colour_of(image: Image.Image) -> str:
    mean = np.asarray(image, np.float64).reshape(-1, 3).mean(0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


class Captioner(Faulty, api.Captioner):
    name = "awkward"
    Config = FaultConfig

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        words = [colour_of(image) for image in images]
        self._answering("caption", words)
        return [f"a {word} thing" for word in words]


class Generator(Faulty, api.Generator):
    name = "awkward"
    Config = FaultConfig

    def generate(self, requests: Sequence[api.ImageRequest]) -> list[Image.Image]:
        self._answering("generate", [request.concept for request in requests])
        return [_flat(request.concept, request.seed) for request in requests]


class Scorer(api.Scorer):
    name = "awkward"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        for one in evidence:
            one.sample[0].open()  # pictures must open in another process
        return [[float(row.mean()) for row in one.activations] for one in evidence]


def _flat(colour: str, seed: int) -> Image.Image:
    tint = np.clip(np.array(COLOURS[colour]) + np.random.default_rng(seed).integers(-60, 61, 3), 0, 255)
    return Image.fromarray(np.broadcast_to(tint.astype(np.uint8), (12, 12, 3)).copy())
