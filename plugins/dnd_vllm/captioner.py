"""The captioner `vllm-vlm`: a chat model that sees, served by vLLM."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic

from dnd.api import Captioner, ItemError, Runtime
from dnd_llama.conversation import Ask
from dnd_vllm.config import ServerConfig
from dnd_vllm.served import Served
from dnd_vlm.question import QuestionConfig, shrunk

if TYPE_CHECKING:
    from PIL.Image import Image


class VllmCaptionerConfig(ServerConfig, QuestionConfig):
    """Settings of the captioner `vllm-vlm`."""

    default_model: ClassVar[str] = "qwen2.5-vl-7b-instruct"
    unkeyed: ClassVar[frozenset[str]] = ServerConfig.unkeyed | QuestionConfig.unkeyed
    structured: ClassVar[bool] = False
    max_new_tokens: int = pydantic.Field(64, ge=1)
    batch_size: int = pydantic.Field(256, ge=1)
    """Images at a time: they go out together, and their captions are kept before the next ones' turn."""


class VllmCaptioner(Served, Captioner):
    """Any image-text-to-text chat model that vLLM serves, asked for a sentence about each image.

    Captions are the likeliest words; but vLLM's last bits depend on what else is in a batch, and a near tie between two
    words may fall the other way. The summarizer `vllm` with the same model and settings of the server uses the one that
    captions were made with."""

    name = "vllm-vlm"
    Config = VllmCaptionerConfig
    shows_images = True

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self.batch_size = config.batch_size

    def caption(self, images: Sequence[Image]) -> list[str]:
        """One caption per RGB image, in one line. Raises ItemError where the model has nothing to say."""
        captions = [" ".join(answer.split()) for answer in self.answer([self._ask(image) for image in images])]
        empty = [str(place) for place, words in enumerate(captions) if not words]
        if empty:
            raise ItemError(f"the model gave an empty caption for image {', '.join(empty)} of {len(images)}")
        return captions

    def _ask(self, image: Image) -> Ask:
        shown = {"type": "image_url", "image_url": {"url": data_url(shrunk(image, self.config.max_side))}}
        content: Any = [shown, {"type": "text", "text": self.config.prompt}]
        return Ask([{"role": "user", "content": content}], 0, 0.0)


def data_url(image: Image) -> str:
    """The pixels exactly, as a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
