"""CLIP's two towers from a local folder, loaded when first used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dnd.errors import ModelError
from dnd.models.encoder import find_model

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float32]
BATCH = 64


class Clip:
    """Embeddings of length 1."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name, self._device = name, device
        self._folder, digest = find_model(name, "scorer")
        self.digest = digest or str(self._folder.resolve())

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import CLIPModel, CLIPProcessor

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            processor = CLIPProcessor.from_pretrained(self._folder, backend="pil", **local)
            model: Any = CLIPModel.from_pretrained(self._folder, use_safetensors=True, **local)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{self._folder} does not load as a CLIP: {error}",
                "It needs config.json, the processor's files and safetensors weights.",
            ) from error
        return processor, model.float().to(self._device).eval()

    def texts(self, texts: Sequence[str] | str) -> Floats:
        """(n, d); a lone string is one text. One by one: not every CLIP's tokenizer knows how to pad."""
        import torch

        wanted = [texts] if isinstance(texts, str) else list(texts)
        processor, model = self._parts
        found: dict[str, Floats] = {}
        for text in dict.fromkeys(wanted):
            inputs = processor(text=[text], truncation=True, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                found[text] = _normal(model.get_text_features(**inputs).pooler_output)[0]
        return np.stack([found[text] for text in wanted])

    def images(self, images: Sequence[Image]) -> Floats:
        """(n, d) of RGB images."""
        import torch

        processor, model = self._parts
        parts = []
        for at in range(0, len(images), BATCH):
            inputs = processor(images=list(images[at : at + BATCH]), return_tensors="pt").to(model.device)
            with torch.inference_mode():
                parts.append(_normal(model.get_image_features(**inputs).pooler_output))
        return np.concatenate(parts)


def _normal(rows: Any) -> Floats:
    import torch

    return np.asarray(torch.nn.functional.normalize(rows.float(), dim=-1).cpu().numpy(), np.float32)
