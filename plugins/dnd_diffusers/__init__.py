"""The generator `diffusers`: any text-to-image pipeline of diffusers, from a local folder."""

from __future__ import annotations

from dnd import api
from dnd_diffusers.config import DiffusersConfig
from dnd_diffusers.generator import DiffusersGenerator

__all__ = ["DiffusersConfig", "DiffusersGenerator"]


@api.hookimpl
def register_generators() -> list[type[api.Generator]]:
    return [DiffusersGenerator]
