"""The captioner "blip2": BLIP-2 with an OPT or Flan-T5 language model, through transformers."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from dnd import api

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Blip2Config(api.Config):
    """Settings of the captioner "blip2"."""

    model: api.ModelName = "blip2-opt-2.7b"
    """A `Blip2ForConditionalGeneration` with its processor."""
    prompt: str | None = None
    """Words the caption goes on from, such as "a photo of" or "Question: what is this? Answer:"; they are not
    part of the caption."""
    max_new_tokens: int = Field(32, ge=1)
    num_beams: int = Field(1, ge=1)
    """1 is greedy decoding; more is beam search. Nothing is ever sampled."""
    batch_size: int = Field(16, ge=1)
    """Images at a time; fewer once the device's memory has run out."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """ "auto" is float32 on the CPU; on CUDA bfloat16, or float16 where the GPU has no bfloat16."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Weights packed by bitsandbytes, for a GPU too small for the model."""


class Blip2Captioner(api.Captioner):
    name = "blip2"
    requires = ("transformers", "accelerate")
    Config = Blip2Config
    config: Blip2Config

    def __init__(self, config: Blip2Config, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size
        self._model: Any = None
        self._processor: Any = None
        self._fits = config.batch_size

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable BLIP-2, UsageError where bitsandbytes is missing."""
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        if self._model is not None:
            return
        folder, config = self.runtime.weights(self.config.model), self.config
        options: dict[str, Any] = {"dtype": self._dtype()}
        if config.quantization is not None:
            options |= {"quantization_config": self._quantization(), "device_map": {"": self.runtime.device}}
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            # The PIL image processor everywhere: pixels must not depend on whether torchvision is installed.
            processor: Any = Blip2Processor.from_pretrained(folder, backend="pil", **local)
            model: Any = Blip2ForConditionalGeneration.from_pretrained(folder, use_safetensors=True, **local, **options)
        except (OSError, ValueError, KeyError) as error:
            raise api.ModelError(
                f"{config.model!r} in {folder} does not load as a BLIP-2: {error}",
                "the folder needs config.json, the processor's files and safetensors weights",
            ) from error
        if model.config.image_token_index is None:
            raise api.ModelError(
                f"{config.model!r} has no image_token_index in its config.json",
                "use a revision of the checkpoint made for transformers 4.46 or later",
            )
        processor.num_query_tokens = model.config.num_query_tokens
        processor.tokenizer.padding_side = "left"
        self._processor = processor
        self._model = (model if config.quantization else model.to(self.runtime.device)).eval()

    def _dtype(self) -> torch.dtype:
        import torch

        if self.config.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.config.dtype]
        if not self.runtime.device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16

    def _quantization(self) -> Any:
        from importlib.util import find_spec

        from transformers import BitsAndBytesConfig

        if find_spec("bitsandbytes") is None:
            raise api.UsageError(
                f"quantization {self.config.quantization!r} needs bitsandbytes", "pip install bitsandbytes"
            )
        if self.config.quantization == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=self._dtype())

    def caption(self, images: Sequence[Image]) -> list[str]:
        """One caption per RGB image, in one line. Raises ItemError where the model has nothing to say."""
        captions: list[str] = []
        while len(captions) < len(images):
            part = list(images[len(captions) : len(captions) + self._fits])
            count = len(part)
            if self.runtime.device != "cpu":
                # A GPU rounds differently at another batch shape, and one near tie then changes a caption.
                part += part[-1:] * (self._fits - count)
            said = self._generate_or_shrink(part)
            captions += [] if said is None else said[:count]
        empty = [str(i) for i, words in enumerate(captions) if not words]
        if empty:
            which = f"{', '.join(empty)} of {len(images)}"
            raise api.ItemError(f"{self.config.model} gave an empty caption for image {which}")
        return captions

    def _generate_or_shrink(self, images: list[Image]) -> list[str] | None:
        """None after the device's memory ran out: from now on half as many images at a time."""
        from accelerate.utils.memory import should_reduce_batch_size

        try:
            return self._generate(images)
        except RuntimeError as error:
            if len(images) == 1 or not should_reduce_batch_size(error):
                raise
        # Past the handler, so that the traceback no longer holds the failed batch's tensors.
        self._fits = len(images) // 2
        self._release()
        return None

    def _generate(self, images: list[Image]) -> list[str]:
        model, tokenizer = self._model, self._processor.tokenizer
        prompt = self.config.prompt
        if prompt is None and getattr(model.config.text_config, "bos_token_id", None) is None:
            prompt = ""  # generate() would start from a token that the language model does not have
        text = None if prompt is None else [prompt] * len(images)
        inputs = self._processor(images=images, text=text, return_tensors="pt").to(model.device)
        ids = model.generate(
            **inputs, max_new_tokens=self.config.max_new_tokens, num_beams=self.config.num_beams, do_sample=False
        )
        if model.config.use_decoder_only_language_model:  # it repeats what it was given: queries, <s>, prompt
            given = model.config.num_query_tokens + 1 if text is None else inputs["input_ids"].shape[1]
            ids = ids[:, given:]
        return [" ".join(words.split()) for words in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def close(self) -> None:
        if self._model is not None:
            self._model = self._processor = None
            self._release()

    def _release(self) -> None:
        gc.collect()
        if self.runtime.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()


@api.hookimpl
def register_captioners() -> list[type[api.Captioner]]:
    return [Blip2Captioner]
