"""The captioner `vlm`: any image-text-to-text chat model of transformers."""

from __future__ import annotations

from dnd import api
from dnd_vlm.captioner import VlmCaptioner, VlmConfig

__all__ = ["VlmCaptioner", "VlmConfig"]


@api.hookimpl
def register_captioners() -> list[type[api.Captioner]]:
    return [VlmCaptioner]
