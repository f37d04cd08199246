"""The captioner "blip2": BLIP-2 with an OPT or Flan-T5 language model, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from dnd import api
from dnd_hf import batches, devices, loading
from dnd_hf.batches import Batches
from dnd_hf.fitted import Fitted
from dnd_hf.settings import WeightsConfig

if TYPE_CHECKING:
    from PIL.Image import Image

AUTO = {"cpu": 16, "cuda": 64}
"""Images at a time where the batch size is "auto": on a GPU at most, and then what its memory allows."""
ADVICE = 'set the captioner\'s quantization to "8bit" or "4bit", or its offload to "cpu"'


class Blip2Config(WeightsConfig):
    """Settings of the captioner "blip2"."""

    model: api.ModelName = "blip2-opt-2.7b"
    """A `Blip2ForConditionalGeneration` with its processor."""
    prompt: str | None = None
    """Words the caption goes on from, such as "a photo of" or "Question: what is this? Answer:"; they are not
    part of the caption."""
    max_new_tokens: int = Field(32, ge=1)
    num_beams: int = Field(1, ge=1)
    """1 is greedy decoding; more is beam search. Nothing is ever sampled."""


class Blip2Captioner(Fitted, api.Captioner):
    """BLIP-2 with an OPT or Flan-T5 language model, through transformers."""

    name = "blip2"
    requires = ("transformers", "accelerate")
    Config = Blip2Config
    config: Blip2Config

    def __init__(self, config: Blip2Config, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = batches.batch_limit(config.batch_size, AUTO, runtime.device)
        self._model: Any = None
        self._processor: Any = None
        # A GPU rounds differently at another batch shape, and one near tie then changes a caption.
        self._batches = Batches(self.batch_size, runtime.device, fill=runtime.device != "cpu")

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable BLIP-2, UsageError where bitsandbytes is missing,
        DeviceError where the device has too little memory."""
        if self._model is not None:
            return
        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            self._load()
            if self.config.batch_size == "auto":
                self.batch_size = batches.largest_batch(self._try, self.batch_size, self.runtime.device)
                self._batches.size = self.batch_size
        if self.config.compile:
            loading.compile_in_place(self._model.language_model)

    def _load(self) -> None:
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        name, folder = self.config.model, self.runtime.weights(self.config.model)
        loading.check_architecture(folder / "config.json", name, "Blip2ForConditionalGeneration")
        placement = loading.Placement(self.runtime.device, *self._precision, self.config.offload)
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
        self._processor, self._model = processor, model

    def _try(self, size: int) -> None:
        """The most that a batch of this size can take: every caption of full length."""
        from PIL import Image

        self._generate([Image.new("RGB", (64, 64))] * size, at_least=self.config.max_new_tokens)

    def caption(self, images: Sequence[Image]) -> list[str]:
        """One caption per RGB image, in one line. Raises ItemError where the model has nothing to say."""
        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            captions = self._batches.map(self._generate, images)
        empty = [str(i) for i, words in enumerate(captions) if not words]
        if empty:
            which = f"{', '.join(empty)} of {len(images)}"
            raise api.ItemError(f"{self.config.model} gave an empty caption for image {which}")
        return captions

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

    def _generate(self, images: list[Image], *, at_least: int = 0, draw: Any = None) -> list[str]:
        """`draw`: a LogitsProcessor that decides on each token."""
        model, tokenizer, config = self._model, self._processor.tokenizer, self.config
        prompt = self._prompt()
        text = None if prompt is None else [prompt] * len(images)
        inputs = self._processor(images=images, text=text, return_tensors="pt").to(self.runtime.device)
        limits = {"max_new_tokens": config.max_new_tokens, "min_new_tokens": at_least or None}
        beams = config.num_beams if draw is None else 1
        processors = None if draw is None else [draw]
        ids = model.generate(**inputs, **limits, num_beams=beams, do_sample=False, logits_processor=processors)
        if model.config.use_decoder_only_language_model:  # it repeats what it was given: queries, <s>, prompt
            given = model.config.num_query_tokens + 1 if text is None else inputs["input_ids"].shape[1]
            ids = ids[:, given:]
        return [" ".join(words.split()) for words in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def describe(self, images: list[Image], draw: Any) -> list[str]:
        """A text for each, whose tokens the LogitsProcessor `draw` decides on; all in one batch."""
        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            return self._generate(images, draw=draw)

    def close(self) -> None:
        if self._model is not None:
            self._model = self._processor = None
            devices.release(self.runtime.device)
