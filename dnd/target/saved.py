"""What torch.save wrote, read without running code: objects of any class become stand-ins that only hold data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from dnd.errors import UsageError


class Stored:
    """An object of a class that is not imported. Its attributes are the file's."""

    path: str = ""
    """Of its class: "torch.nn.modules.linear.Linear"."""

    def get(self, name: str) -> Any:
        """An attribute, or a parameter, buffer or child of a module. None where there is none."""
        for held in (vars(self), *(vars(self).get(kind) or {} for kind in ("_parameters", "_buffers", "_modules"))):
            if isinstance(held, dict) and held.get(name) is not None:
                return held[name]
        return None

    def __str__(self) -> str:
        return self.path.rpartition(".")[2]


def read_saved(file: Path, content: bytes, hint: str) -> Any:
    """Tensors, containers and `Stored` objects. Raises UsageError with the hint."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
        named: list[Any] = [(type(path, (Stored,), {"path": path}), path) for path in unknown]
        with torch.serialization.safe_globals(named):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{file}: its weights cannot be read: {type(error).__name__}", hint) from error
