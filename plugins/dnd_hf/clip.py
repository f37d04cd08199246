"""CLIP's two towers, for whoever compares images with images or with words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd_hf import devices
from dnd_hf.batches import Batches
from dnd_hf.loading import LOCAL, load_errors, load_whole
from dnd_hf.sizes import weight_bytes, work_beside

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float64]
Open = Callable[[], "Image"]


class ClipConfig(api.Config):
    """Settings of everything that looks through CLIP."""

    model: api.ModelName = "clip-vit-large-patch14"
    """A `CLIPModel` with its processor."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Images at a time; fewer once the device's memory has run out."""


def memory(config: ClipConfig, runtime: api.Runtime) -> int:
    """Bytes that a `Clip` needs on its device: an estimate."""
    weights = weight_bytes(runtime.weights(config.model).glob("*.safetensors"), "float32")
    return weights + work_beside(weights, runtime.device)


class Clip:
    """A `CLIPModel` from a local folder, in float32."""

    def __init__(self, folder: Path, device: str, batch_size: int = 64, name: str = "the model") -> None:
        """Raises ModelError where the folder holds no usable CLIP."""
        from transformers import CLIPModel, CLIPProcessor

        with load_errors(name, folder, "a CLIP", "config.json, the processor's files"):
            # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
            self._processor: Any = CLIPProcessor.from_pretrained(folder, backend="pil", **LOCAL)
            model: Any = load_whole(CLIPModel, folder, name, **LOCAL)
        self._model = model.float().to(device).eval()
        self._device, self._batches = device, Batches(batch_size, device)

    def images(self, images: Sequence[Open]) -> Floats:
        """What opens RGB images -> (n, d): embeddings of length 1. Never more than a batch is open."""
        if self._model is None:
            raise RuntimeError("images() after close()")
        return _unit(np.stack(self._batches.map(self._embed, images)))

    def _embed(self, images: list[Open]) -> Floats:
        import torch

        inputs = self._processor(images=[image().convert("RGB") for image in images], return_tensors="pt")
        with torch.inference_mode():
            found = self._model.get_image_features(**inputs.to(self._device)).pooler_output
        embedded: Floats = found.double().cpu().numpy()
        return embedded

    def texts(self, texts: Iterable[str]) -> Floats:
        """(n, d): embeddings of length 1. Each text goes through alone, so that padding cannot change it."""
        import torch

        rows = []
        for text in texts:
            inputs = self._processor(text=[text], truncation=True, return_tensors="pt").to(self._device)
            with torch.inference_mode():
                rows.append(self._model.get_text_features(**inputs).pooler_output.double().cpu().numpy()[0])
        return _unit(np.stack(rows))

    def close(self) -> None:
        if self._model is not None:
            self._model = self._processor = None
            devices.release(self._device)


class ClipEncoder(api.Encoder):
    """CLIP's two towers as a backend."""

    name = "clip"
    requires = ("transformers", "accelerate")
    Config = ClipConfig
    config: ClipConfig

    def __init__(self, config: ClipConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size
        self._clip: Clip | None = None

    def memory(self) -> int:
        return memory(self.config, self.runtime)

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable CLIP."""
        if self._clip is None:
            folder = self.runtime.weights(self.config.model)
            self._clip = Clip(folder, self.runtime.device, self.config.batch_size, self.config.model)

    def close(self) -> None:
        if self._clip is not None:
            self._clip.close()
            self._clip = None

    def encode(self, items: Sequence[Image | str]) -> list[npt.NDArray[np.float32]]:
        if self._clip is None:
            raise RuntimeError("encode() before load()")
        images = [item for item in items if not isinstance(item, str)]
        texts = [item for item in items if isinstance(item, str)]
        seen = iter(self._clip.images([lambda image=image: image for image in images]) if images else ())
        read = iter(self._clip.texts(texts) if texts else ())
        return [next(read if isinstance(item, str) else seen).astype(np.float32) for item in items]


class ClipMemory:
    """Embeddings by what they are of, the least recently used forgotten first."""

    def __init__(self, limit: int) -> None:
        self._limit, self._known = limit, OrderedDict[str, Floats]()

    def get(self, keys: Sequence[str], embed: Callable[[list[str]], Floats]) -> Floats:
        """(n, d) in the order of `keys`; `embed` is asked once for the distinct ones that are not known."""
        found: dict[str, Floats] = {}
        for key in set(keys) & self._known.keys():
            self._known.move_to_end(key)
            found[key] = self._known[key]
        new = list(dict.fromkeys(key for key in keys if key not in found))
        if new:
            found |= dict(zip(new, embed(new), strict=True))
            self._known |= {key: found[key] for key in new}
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, 0))


def _unit(rows: npt.NDArray[Any]) -> Floats:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float64)
