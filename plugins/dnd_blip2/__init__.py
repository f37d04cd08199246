"""BLIP and BLIP-2 through transformers: the captioners `blip` and `blip2`, and the summarizer `blip2-exemplars`, which
needs no captions."""

from __future__ import annotations

from dnd import api
from dnd_blip2.blip import BlipCaptioner, BlipConfig
from dnd_blip2.captioner import Blip2Captioner, Blip2Config
from dnd_blip2.exemplars import Blip2Exemplars

__all__ = ["Blip2Captioner", "Blip2Config", "Blip2Exemplars", "BlipCaptioner", "BlipConfig"]


@api.hookimpl
def register_captioners() -> list[type[api.Captioner]]:
    return [BlipCaptioner, Blip2Captioner]


@api.hookimpl
def register_summarizers() -> list[type[api.Summarizer]]:
    return [Blip2Exemplars]
