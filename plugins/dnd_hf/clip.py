"""CLIP and its relatives, for whatever compares images with images or with words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import ref

import numpy as np
import numpy.typing as npt
import pydantic

from dnd import api
from dnd_hf import devices, open_clip
from dnd_hf.batches import Batches
from dnd_hf.checks import check_architecture, check_tokenizer
from dnd_hf.loading import LOCAL, load_errors, load_whole
from dnd_hf.precision import torch_dtype
from dnd_hf.sizes import weight_bytes, work_beside

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Floats = npt.NDArray[np.float64]
Open = Callable[[], "Image"]
GROUP = 16
"""Images or texts that a CPU embeds together, never more or fewer: rounding depends on the batch's shape, and the last
digit of a score would depend on what was embedded before."""
KINDS = ("clip", "siglip", "siglip2", "metaclip_2")
"""Model types of transformers whose two towers end in one space."""


class ClipConfig(api.Config):
    """Settings of everything that looks through CLIP."""

    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("scorer", "encoder")}
    model: api.ModelName = "clip-vit-large-patch14"
    """CLIP, MetaCLIP, SigLIP or SigLIP 2 with its processor, in the format of transformers; or a CLIP in that of
    OpenCLIP: open_clip_config.json, open_clip_model.safetensors and the tokenizer's files."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Images or texts at a time on a GPU; fewer once its memory has run out. On a CPU it is always 16."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Half precision takes half the memory, and rounds cosines to two or three digits."""


class Clip:
    """The two towers of a model. Made without cost, like a backend."""

    def __init__(self, config: ClipConfig, runtime: api.Runtime) -> None:
        self._config, self._runtime = config, runtime
        self._whole = GROUP if runtime.device == "cpu" else 0
        """To so many rows a smaller batch is filled up."""
        self._batches = Batches(self._whole or config.batch_size, runtime.device)
        self._model: Any = None
        self._processor: Any = None

    def memory(self) -> int:
        """Bytes that it needs on its device: an estimate."""
        folder = self._runtime.weights(self._config.model)
        files = (
            [folder / open_clip.WEIGHTS] if open_clip.is_alone(folder) else sorted(folder.glob("model*.safetensors"))
        )
        weights = weight_bytes(files, self._config.dtype)
        return weights + work_beside(weights, self._runtime.device)

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable CLIP."""
        from transformers import AutoModel, AutoProcessor

        if self._model is not None:
            return
        name, folder = self._config.model, self._runtime.weights(self._config.model)
        dtype = torch_dtype(self._config.dtype)
        model: Any
        check_architecture(folder / "config.json", name, *KINDS, key="model_type")
        with load_errors(name, folder, "a CLIP", "config.json, the processor's files"):
            if open_clip.is_alone(folder):
                self._processor, model = open_clip.load(folder, name, dtype)
            else:
                # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
                self._processor = AutoProcessor.from_pretrained(folder, backend="pil", **LOCAL)
                model = load_whole(AutoModel, folder, name, dtype=dtype, **LOCAL)
                check_tokenizer(self._processor.tokenizer, model, name)
        self._model = model.to(self._runtime.device).eval()

    def images(self, images: Sequence[Open]) -> Floats:
        """What opens RGB images -> (n, d): embeddings of length 1. Never more than a batch is open."""
        self._check_loaded()
        return _unit(np.stack(self._batches.map(self._see, images)))

    def _see(self, images: list[Open]) -> Floats:
        import torch

        inputs = self._processor(images=[image().convert("RGB") for image in images], return_tensors="pt")
        inputs = inputs.to(self._runtime.device, torch_dtype(self._config.dtype))
        with torch.inference_mode():
            filled = {name: self._filled(rows) for name, rows in inputs.items()}
            found = self._model.get_image_features(**filled).pooler_output[: len(images)]
        embedded: Floats = found.double().cpu().numpy()
        return embedded

    def _filled(self, rows: torch.Tensor) -> torch.Tensor:
        """With the last one repeated."""
        return rows if len(rows) >= self._whole else rows[[*range(len(rows)), *[-1] * (self._whole - len(rows))]]

    def texts(self, texts: Iterable[str]) -> Floats:
        """(n, d): embeddings of length 1. Texts go together with those of their own length, so that no padding can
        change one; SigLIP's all have one length, that of its training."""
        self._check_loaded()
        longest = self._model.config.text_config.max_position_embeddings
        padding = "max_length" if self._model.config.model_type.startswith("siglip") else False
        rows = self._processor.tokenizer(list(texts), truncation=True, max_length=longest, padding=padding).input_ids
        found: dict[int, npt.NDArray[np.float64]] = {}
        for length in sorted({len(row) for row in rows}):
            places = [place for place, row in enumerate(rows) if len(row) == length]
            found |= zip(places, self._batches.map(self._read, [rows[place] for place in places]), strict=True)
        return _unit(np.stack([found[place] for place in range(len(rows))]))

    def _read(self, rows: list[list[int]]) -> Floats:
        import torch

        with torch.inference_mode():
            filled = self._filled(torch.tensor(rows, device=self._model.device))
            found = self._model.get_text_features(input_ids=filled).pooler_output[: len(rows)]
        embedded: Floats = found.double().cpu().numpy()
        return embedded

    def _check_loaded(self) -> None:
        if self._model is None:
            raise RuntimeError("CLIP is used before load() or after close()")

    def close(self) -> None:
        if self._model is not None:
            model = ref(self._model)
            self._model = self._processor = None
            devices.release(self._runtime.device, model)


class ClipBackend(api.Backend):
    """A backend that looks through one CLIP. Comes before the interface among a backend's bases."""

    requires = ("transformers", "accelerate")
    config: Any
    """A `ClipConfig`."""

    def __init__(self, config: Any, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.clip = Clip(config, runtime)

    def memory(self) -> int:
        return self.clip.memory()

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable CLIP."""
        self.clip.load()

    def close(self) -> None:
        self.clip.close()


class ClipEncoder(ClipBackend, api.Encoder):
    """The two towers of CLIP, OpenCLIP, MetaCLIP, SigLIP or SigLIP 2 as a backend."""

    name = "clip"
    Config = ClipConfig

    def __init__(self, config: ClipConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size

    def encode(self, items: Sequence[Image | str]) -> list[npt.NDArray[np.float32]]:
        images = [item for item in items if not isinstance(item, str)]
        texts = [item for item in items if isinstance(item, str)]
        seen = iter(self.clip.images([lambda image=image: image for image in images]) if images else ())
        read = iter(self.clip.texts(texts) if texts else ())
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
