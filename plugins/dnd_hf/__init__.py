"""What the plugins on transformers and diffusers share: loading, number formats, packed weights; and CLIP, which is an
encoder by itself."""

from __future__ import annotations

from dnd import api
from dnd_hf.clip import ClipEncoder


@api.hookimpl
def register_encoders() -> list[type[api.Encoder]]:
    return [ClipEncoder]
