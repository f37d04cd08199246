"""The summarizer `llama`: a local Llama, or any chat model, on transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd.api import ModelName, Runtime, Summarizer, hookimpl
from dnd_hf import batches, devices, loading
from dnd_hf.batches import Batches
from dnd_hf.fitted import Fitted
from dnd_hf.loading import Placement
from dnd_hf.settings import WeightsConfig
from dnd_llama.conversation import Ask, AskingConfig, AskingSummarizer
from dnd_llama.prompts import concept_messages

if TYPE_CHECKING:
    from dnd_llama.model import ChatModel

AUTO = {"cpu": 32, "cuda": 128}
"""Chats at a time where the batch size is "auto": on a GPU at most, and then what its memory allows."""
ADVICE = 'set the summarizer\'s quantization to "8bit" or "4bit", or its offload to "cpu", or use a smaller model'
LONG = (
    "a small brown dog and a large grey cat lie side by side on a red blanket in front of an old wooden fence",
) * 14
"""More captions, and longer ones, than a unit usually has."""


class LlamaConfig(WeightsConfig, AskingConfig):
    """Settings of the summarizer "llama"; the batch size counts chats."""

    model: ModelName = "llama-3.1-8b-instruct"
    """Any causal language model of transformers with a chat template: Llama, Qwen, Mistral, Gemma, Phi, SmolLM, ..."""


class LlamaSummarizer(Fitted, AskingSummarizer):
    """A local Llama, or any other chat model of transformers.

    Any folder with a causal language model and a chat template serves: Llama, Qwen, SmolLM2, Gemma, Mistral.

    With float32 a request's answer is the same in every batch; in half precision padding moves the last
    bits, and so does 8-bit packing, and a near tie between two words may fall the other way."""

    name = "llama"
    requires = ("transformers", "accelerate")
    Config = LlamaConfig

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._batches = Batches(batches.batch_limit(config.batch_size, AUTO, runtime.device), runtime.device)
        self.batch_size = self._batches.size if config.batch_size != "auto" else AUTO["cpu"]  # units of one call
        self._chat: ChatModel | None = None
        self._tokens = 0

    def checkpoint(self) -> Path:
        return self.runtime.weights(self.config.model)

    def used(self) -> Mapping[str, int]:
        return {"tokens": self._tokens}

    def load(self) -> None:
        """Raises ModelError where the folder holds no usable chat model, UsageError where bitsandbytes is missing,
        DeviceError where the device has too little memory."""
        from dnd_llama.model import ChatModel

        if self._chat is not None:
            return
        config, device = self.config, self.runtime.device
        placement = Placement(device, *self._precision, config.offload)
        with devices.device_errors(config.model, device, ADVICE):
            self._chat = chat = ChatModel(self.runtime.weights(config.model), config.model, placement)
            if config.batch_size == "auto":
                self._batches.size = batches.largest_batch(
                    lambda size: chat.answer_batch(_unlike(size), max_new_tokens=config.max_new_tokens),
                    self._batches.size,
                    device,
                )
        if config.compile:
            loading.compile_in_place(chat.model)

    def answer(self, asks: Sequence[Ask]) -> list[str]:
        if self._chat is None:
            self.load()
        assert self._chat is not None
        before = self._chat.tokens
        with devices.device_errors(self.config.model, self.runtime.device, ADVICE):
            answers = self._chat.answer(asks, self._batches, max_new_tokens=self.config.max_new_tokens)
        self._tokens += self._chat.tokens - before
        return answers

    def close(self) -> None:
        if self._chat is not None:
            self._chat.close()
            self._chat = None


def _unlike(n: int) -> list[Ask]:
    """Long chats that share no more than chats about different units do."""
    return [Ask(concept_messages((f"{number}: {LONG[0]}", *LONG[1:])), 0, 0.0) for number in range(n)]


@hookimpl
def register_summarizers() -> Iterable[type[Summarizer]]:
    return [LlamaSummarizer]
