"""The captioner "blip": the first BLIP, which the paper captions with, through transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dnd import api
from dnd_hf import checks, loading
from dnd_hf.captioning import CaptioningConfig, HfCaptioner

if TYPE_CHECKING:
    from PIL.Image import Image


class BlipConfig(CaptioningConfig):
    """Settings of the captioner "blip"."""

    model: api.ModelName = "blip-image-captioning-base"
    """A `BlipForConditionalGeneration` with its processor."""


class BlipCaptioner(HfCaptioner):
    """BLIP, base or large, through transformers: small, fast, and what Describe-and-Dissect was published with."""

    name = "blip"
    Config = BlipConfig
    config: BlipConfig

    def _load(self, placement: loading.Placement) -> tuple[Any, Any]:
        from transformers import BlipForConditionalGeneration, BlipProcessor

        name, folder = self.config.model, self.runtime.weights(self.config.model)
        checks.check_architecture(folder / "config.json", name, "BlipForConditionalGeneration")
        with loading.load_errors(name, folder, "a BLIP", "config.json, the processor's files"):
            # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
            processor: Any = BlipProcessor.from_pretrained(folder, backend="pil", **loading.LOCAL)
            model = loading.load_model(BlipForConditionalGeneration, folder, name, placement)
        return processor, model

    def _inputs(self, images: list[Image]) -> Any:
        text = [self.config.prompt] * len(images) if self.config.prompt else None
        return self._processor(images=images, text=text, return_tensors="pt")

    def _given(self, inputs: Any) -> int:
        """The start token, and the prompt, of which `generate` leaves the end token out."""
        return int(inputs["input_ids"].shape[1]) - 1 if "input_ids" in inputs else 1

    def _compiled(self) -> Any:
        return self._model.text_decoder
