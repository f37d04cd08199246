"""What the captioners on transformers share: settings, batches, generation and its errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

from pydantic import Field

from dnd import api
from dnd_hf import batches, checks, devices, loading
from dnd_hf.batches import Batches
from dnd_hf.fitted import Fitted
from dnd_hf.settings import WeightsConfig

if TYPE_CHECKING:
    from PIL.Image import Image

AUTO = {"cpu": 16, "cuda": 64}
"""Images at a time where the batch size is "auto": on a GPU at most, and then what its memory allows."""
ADVICE = 'set the captioner\'s quantization to "8bit" or "4bit", or its offload to "cpu"'


class CaptioningConfig(WeightsConfig):
    """Settings of every captioner on transformers."""

    prompt: str | None = None
    """Words the caption goes on from, such as "a photo of"; they are not part of the caption."""
    max_new_tokens: int = Field(32, ge=1)
    min_new_tokens: int = Field(0, ge=0)
    """The caption does not end before."""
    num_beams: int = Field(1, ge=1)
    """1 is greedy decoding; more is beam search. Nothing is ever sampled."""
    no_repeat_ngram: int = Field(3, ge=0)
    """No sequence of so many tokens comes twice in a caption, because captioners tend to loop ("a dog on a dog on a
    dog"); 0 lets them."""
    repetition_penalty: float = Field(1.0, ge=1.0)
    """Above 1, tokens that the caption has already become less likely (Keskar et al., 2019)."""


class HfCaptioner(Fitted, api.Captioner):
    """A captioner on transformers: a subclass loads its model and turns images into its inputs."""

    requires = ("transformers", "accelerate")
    config: CaptioningConfig
    trial_size = (64, 64)
    """Pixels of the images by which the batch size is measured."""

    def __init__(self, config: CaptioningConfig, runtime: api.Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = batches.batch_limit(config.batch_size, AUTO, runtime.device)
        self._model: Any = None
        self._processor: Any = None
        # A GPU rounds differently at another batch shape, and one near tie then changes a caption.
        self._batches = Batches(self.batch_size, runtime.device, fill=runtime.device != "cpu")

    @abstractmethod
    def _load(self, placement: loading.Placement) -> tuple[Any, Any]:
        """The processor, and the model in eval mode. Raises ModelError, or UsageError where a package is missing."""

    @abstractmethod
    def _inputs(self, images: list[Image]) -> Any:
        """What `generate` of the model takes, a BatchFeature in the CPU's memory."""

    @abstractmethod
    def _given(self, inputs: Any) -> int:
        """How many tokens that `generate` gives back are no part of the caption."""

    def _compiled(self) -> Any:
        """The part of the model that `compile` is for."""
        return self._model.language_model

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable model, UsageError where bitsandbytes is missing,
        DeviceError where the device has too little memory."""
        if self._model is not None:
            return
        placement = loading.Placement(self.runtime.device, *self._precision, self.config.offload)
        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            processor, model = self._load(placement)
            checks.check_tokenizer(processor.tokenizer, model, self.config.model)
            self._processor, self._model = processor, model
            if self.config.batch_size == "auto":
                self.batch_size = batches.largest_batch(self._try, self.batch_size, self.runtime.device)
                self._batches.size = self.batch_size
        if self.config.compile:
            loading.compile_in_place(self._compiled())

    def _try(self, size: int) -> None:
        """The most that a batch of this size can take: every caption of full length."""
        from PIL import Image

        self._generate([Image.new("RGB", self.trial_size)] * size, at_least=self.config.max_new_tokens)

    def caption(self, images: Sequence[Image]) -> list[str]:
        """One caption per RGB image, in one line. Raises ItemError where the model has nothing to say."""
        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            captions = self._batches.map(self._generate, images)
        empty = [str(i) for i, words in enumerate(captions) if not words]
        if empty:
            which = f"{', '.join(empty)} of {len(images)}"
            raise api.ItemError(f"{self.config.model} gave an empty caption for image {which}")
        return captions

    def _generate(self, images: list[Image], *, at_least: int = 0, draw: Any = None) -> list[str]:
        """`draw`: a LogitsProcessor that decides on each token."""
        config = self.config
        inputs = self._inputs(images).to(self.runtime.device)
        ids = self._model.generate(
            **inputs,
            max_new_tokens=config.max_new_tokens,
            min_new_tokens=at_least or config.min_new_tokens or None,
            num_beams=config.num_beams if draw is None else 1,
            do_sample=False,
            no_repeat_ngram_size=config.no_repeat_ngram,
            repetition_penalty=config.repetition_penalty,
            logits_processor=None if draw is None else [draw],
        )[:, self._given(inputs) :]
        return [" ".join(words.split()) for words in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @property
    def _tokenizer(self) -> Any:
        return self._processor.tokenizer

    def close(self) -> None:
        if self._model is not None:
            model = ref(self._model)
            self._model = self._processor = None
            devices.release(self.runtime.device, model)
