"""What backends with `WeightsConfig` settings share: automatic settings, found once, and the memory they come to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from dnd import api
from dnd_hf import precision
from dnd_hf.batches import Batches


class Fitted:
    """Comes before the interface among a backend's bases."""

    config: Any
    """A `dnd_hf.settings.WeightsConfig` with a `model`."""
    runtime: api.Runtime
    _batches: Batches

    def chosen(self) -> Mapping[str, Any]:
        dtype, quantization = self._precision
        return {"dtype": dtype, "quantization": quantization, "batch_size": self._batches.size}

    def memory(self) -> int:
        return precision.memory(self.config, self.runtime, *self._precision)

    @cached_property
    def _precision(self) -> tuple[str, str]:
        """dtype and quantization. Kept, because the free memory that decides them changes."""
        return precision.precision(self.config, self.runtime)
