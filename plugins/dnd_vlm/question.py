"""What a chat model is asked about an image, whatever runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from dnd import api

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = (
    "Describe this image in one sentence of at most 30 words: what it shows, and the colours, textures, parts and"
    " surroundings that stand out. Begin with the thing itself; do not write that it is an image."
)


class QuestionConfig(api.Config):
    """Settings of every captioner that asks a chat model."""

    prompt: str = Field(PROMPT, min_length=1)
    """What the model is asked about each image; its answer is the caption."""
    max_side: int = Field(768, ge=28)
    """Pixels: an image with a longer side is shrunk to this first. Models that read images at their own resolution
    spend thousands of tokens on a large one."""


def shrunk(image: Image, max_side: int) -> Image:
    """The image itself where it is small enough."""
    longer = max(image.size)
    if longer <= max_side:
        return image
    width, height = (max(1, round(side * max_side / longer)) for side in image.size)
    return image.resize((width, height), 3)  # bicubic, PIL.Image.Resampling.BICUBIC
