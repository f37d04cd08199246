"""CLIP, by the encoder that the plugins offer, loaded when first used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dnd.api import Encoder, Runtime, model_names
from dnd.config.run import Run
from dnd.models.encoder import find_model
from dnd.models.weights import Weights
from dnd.plugin.registry import Registry
from dnd.plugin.requirements import check_packages

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float32]
BATCH = 64
_ENCODER = "clip"
"""The name of the encoder that reads what `--clip` names."""


class Clip:
    """Embeddings of length 1."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name, self._device = name, device
        self._folder, digest = find_model(name, "scorer", "--clip")
        self.digest = digest or str(self._folder.resolve())

    @cached_property
    def _encoder(self) -> Encoder:
        registry = Registry.load()
        entry = registry.find("encoder", _ENCODER)
        check_packages([entry])
        assert entry.cls is not None
        config = entry.cls.Config.model_validate({"model": self.name})
        encoder = registry.make("encoder", _ENCODER, config, Runtime(self._device, lambda name: self._folder))
        assert isinstance(encoder, Encoder)
        encoder.load()
        return encoder

    def texts(self, texts: Sequence[str] | str) -> Floats:
        """(n, d); a lone string is one text. Every distinct text is read once."""
        wanted = [texts] if isinstance(texts, str) else list(texts)
        distinct = list(dict.fromkeys(wanted))
        found = dict(zip(distinct, self._encoder.encode(distinct), strict=True))
        return np.stack([found[text] for text in wanted])

    def images(self, images: Sequence[Image]) -> Floats:
        """(n, d) of RGB images."""
        return np.stack(self._encoder.encode(images))


def clip_of(run: Run) -> str | None:
    """The CLIP that the run itself used, if its scorer or method names one."""
    known = Weights.default().by_name
    names = [name for choice in (run.scorer, run.method) for name in model_names(choice.config)]
    return next((name for name in names if name in known and known[name].role == "scorer"), None)
