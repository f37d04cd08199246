"""Small functions that plugins and the core must agree on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

_LOST = ("CUDA error", "HIP error", "device-side assert", "driver shutting down")
"""After one of these, nothing works on that device in the same process."""
_FULL = (
    "out of memory",
    "can't allocate memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def auc(positives: npt.NDArray[np.float32], negatives: npt.NDArray[np.float32]) -> float:
    """Area under the ROC curve: the chance that one of `positives` (n,) is above one of `negatives` (m,), 0..1.

    Ties count half. 0.5 where either is empty, NaN where a value is: it is neither above nor below. With a unit's
    activations on synthetic images of a concept and on random probing images it is how well the concept activates the
    unit.
    """
    if not positives.size or not negatives.size:
        return 0.5
    if np.isnan(positives).any() or np.isnan(negatives).any():
        return math.nan
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, "left") + np.searchsorted(ordered, positives, "right")
    return float(below.mean() / (2 * ordered.size))


def ranked(scores: Sequence[float]) -> list[int]:
    """Places of candidates by their scores, best first; of equal ones the earlier."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))


def derive_seed(*parts: object) -> int:
    """A seed, 0 to 2**63 - 1, from what identifies an item: the same parts, the same seed, anywhere."""
    text = json.dumps([str(part) for part in parts], separators=(",", ":"))
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) >> 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the device's or the machine's."""
    return any(
        isinstance(one, MemoryError) or type(one).__name__ == "OutOfMemoryError" or any(t in str(one) for t in _FULL)
        for one in _with_causes(error)
    )


def is_device_lost(error: BaseException) -> bool:
    """Whether the device can no longer be used by the process that got this error."""
    return not is_out_of_memory(error) and any(
        isinstance(one, RuntimeError) and any(text in str(one) for text in _LOST) for one in _with_causes(error)
    )


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
