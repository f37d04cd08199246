"""How near texts are in meaning: sentence embeddings of an encoder on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dnd.errors import DndError, ModelError, UsageError

if TYPE_CHECKING:
    from dnd.evaluation.encoder import Encoder

Floats = npt.NDArray[np.float32]
_NEEDS = ("scipy", "transformers")


def load_encoder(name: str | None = None) -> Encoder:
    """An encoder by its name in models.lock or its folder; by default the first of models.lock that is here.

    Raises ModelError where there is none, UsageError where the packages are missing that it needs.
    """
    missing = [module for module in _NEEDS if util.find_spec(module) is None]
    if missing:
        raise UsageError(f"packages are missing: {', '.join(missing)}", "Run: pip install 'dnd-describe[eval]'")
    from dnd.evaluation.encoder import Encoder
    from dnd.weights import Weights

    if name is not None:
        return Encoder(name)
    weights = Weights.default()
    known = [model.name for model in weights.by_name.values() if model.role == "encoder"]
    for one in known:
        try:
            weights.resolve(one)
        except DndError:
            continue
        return Encoder(one)
    raise ModelError(
        "no sentence encoder is on this machine",
        f"`dnd models fetch {known[0]}`, or name one with --encoder FOLDER." if known else "Name one with --encoder.",
    )


def embed(encoder: Encoder, texts: Sequence[str]) -> Floats:
    """Vectors of length 1, (n, d)."""
    return encoder.encode(list(texts)).sentences
