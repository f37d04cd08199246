"""What vLLM serves: the summarizer `vllm`, a local Llama or any chat model, and the captioner `vllm-vlm`, a chat model
that sees.

vLLM runs in processes of its own, from this environment or another one; what it is asked, and how its answers
are read, is the code of the summarizer `llama` and the captioner `vlm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dnd.api import Captioner, Summarizer, hookimpl
from dnd_llama.conversation import AskingSummarizer
from dnd_vllm.captioner import VllmCaptioner, VllmCaptionerConfig
from dnd_vllm.config import VllmConfig
from dnd_vllm.served import Served

__all__ = ["VllmCaptioner", "VllmCaptionerConfig", "VllmConfig", "VllmSummarizer"]


class VllmSummarizer(Served, AskingSummarizer):
    """A local Llama, or any chat model, served through vLLM on loopback.

    Every chat has a seed, so the same chats in the same order give the same answers; but vLLM's last bits
    depend on what else is in a batch, and a near tie between two words may fall the other way. With the variable
    VLLM_BATCH_INVARIANT=1 set, which needs a GPU that vLLM supports it on, they do not."""

    name = "vllm"
    Config = VllmConfig

    def checkpoint(self) -> Path | None:
        return None if self.config.url is not None else self.runtime.weights(self.config.model)


@hookimpl
def register_captioners() -> Iterable[type[Captioner]]:
    return [VllmCaptioner]


@hookimpl
def register_summarizers() -> Iterable[type[Summarizer]]:
    return [VllmSummarizer]
