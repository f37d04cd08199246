"""The summarizer `llama`: a local Llama, or any chat model, on transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from dnd.api import ModelName, Runtime, Summarizer, UsageError, hookimpl
from dnd_llama.asking import Ask, AskingConfig, AskingSummarizer

if TYPE_CHECKING:
    from dnd_llama.chat import ChatModel


class LlamaConfig(AskingConfig):
    model: ModelName = "llama-3.1-8b-instruct"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """"auto" is float32 on a CPU and the checkpoint's own elsewhere."""
    quantization: Literal["8bit", "4bit"] | None = None


class LlamaSummarizer(AskingSummarizer):
    """With float32 a request's answer is the same in every batch; in half precision padding moves the last
    bits, and a near tie between two words may fall the other way."""

    name = "llama"
    requires = ("transformers", "accelerate")
    Config = LlamaConfig

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._chat: ChatModel | None = None
        self._rows: int = config.batch_size

    def load(self) -> None:
        from dnd_llama.chat import ChatModel

        folder = self.runtime.weights(self.config.model)
        self._chat = ChatModel(
            folder, self.runtime.device, dtype=self.config.dtype, quantization=self.config.quantization
        )

    def answer(self, asks: Sequence[Ask]) -> list[str]:
        if self._chat is None:
            self.load()
        assert self._chat is not None
        try:
            answers, self._rows = self._chat.answer(
                asks, batch_size=self._rows, max_new_tokens=self.config.max_new_tokens
            )
        except RuntimeError as error:
            if "No executable batch size" not in str(error):
                raise
            raise UsageError(
                f"not even one prompt fits in the memory beside {self.config.model}",
                hint='set quantization = "8bit" or "4bit", or use a smaller model',
            ) from error
        return answers

    def close(self) -> None:
        if self._chat is not None:
            self._chat.close()
            self._chat = None


@hookimpl
def register_summarizers() -> Iterable[type[Summarizer]]:
    return [LlamaSummarizer]
