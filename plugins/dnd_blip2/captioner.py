"""The captioner "blip2": BLIP-2 with an OPT or Flan-T5 language model, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dnd import api
from dnd_hf import checks, devices, loading
from dnd_hf.captioning import ADVICE, CaptioningConfig, HfCaptioner

if TYPE_CHECKING:
    from PIL.Image import Image


class Blip2Config(CaptioningConfig):
    """Settings of the captioner "blip2"."""

    model: api.ModelName = "blip2-opt-2.7b"
    """A `Blip2ForConditionalGeneration` with its processor."""
    prompt: str | None = None
    """Words the caption goes on from, such as "a photo of" or "Question: what is this? Answer:"; they are not
    part of the caption."""


class Blip2Captioner(HfCaptioner):
    """BLIP-2 with an OPT or Flan-T5 language model, through transformers."""

    name = "blip2"
    Config = Blip2Config
    config: Blip2Config

    def _load(self, placement: loading.Placement) -> tuple[Any, Any]:
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        name, folder = self.config.model, self.runtime.weights(self.config.model)
        checks.check_architecture(folder / "config.json", name, "Blip2ForConditionalGeneration")
        with loading.load_errors(name, folder, "a BLIP-2", "config.json, the processor's files"):
            # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
            processor: Any = Blip2Processor.from_pretrained(folder, backend="pil", **loading.LOCAL)
            model = loading.load_model(Blip2ForConditionalGeneration, folder, name, placement)
        if model.config.image_token_index is None:
            raise api.ModelError(
                f"{name!r} has no image_token_index in its config.json",
                "use a revision of the checkpoint made for transformers 4.46 or later",
            )
        processor.num_query_tokens = model.config.num_query_tokens
        processor.tokenizer.padding_side = "left"
        return processor, model

    def log_probabilities(self, requests: Sequence[tuple[Image, Sequence[str]]]) -> list[list[float]]:
        """How likely each image is captioned by each text. The words are those of greedy decoding, one image at a time:
        no batch can change an answer."""
        from dnd_blip2.likelihood import log_probabilities

        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            return [
                log_probabilities(self._model, self._processor, image, texts, self._prompt())
                for image, texts in requests
            ]

    def _prompt(self) -> str | None:
        if self.config.prompt is None and getattr(self._model.config.text_config, "bos_token_id", None) is None:
            return ""  # generate() would start from a token that the language model does not have
        return self.config.prompt

    def _inputs(self, images: list[Image]) -> Any:
        prompt = self._prompt()
        text = None if prompt is None else [prompt] * len(images)
        return self._processor(images=images, text=text, return_tensors="pt")

    def _given(self, inputs: Any) -> int:
        """A decoder alone repeats what it was given: the queries, <s>, the prompt."""
        if not self._model.config.use_decoder_only_language_model:
            return 0
        if "input_ids" in inputs:
            return int(inputs["input_ids"].shape[1])
        return int(self._model.config.num_query_tokens) + 1

    def describe(self, images: list[Image], draw: Any) -> list[str]:
        """A text for each, whose tokens the LogitsProcessor `draw` decides on; all in one batch."""
        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            return self._generate(images, draw=draw)
