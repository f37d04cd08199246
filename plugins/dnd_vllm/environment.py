"""What a process of vLLM's Python gets of our environment: what it needs of the machine, and nothing of our Python.

Its interpreter is another one. A PYTHONPATH or LD_PRELOAD that was meant for ours would put other modules or
libraries before its own, and our keys and tokens are none of its business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_NAMES = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "NO_COLOR"),
        *("LD_LIBRARY_PATH", "DO_NOT_TRACK", "SYSTEMROOT"),
    )
)
_PREFIXES = (
    *("LC_", "XDG_", "DND_OFFLINE_", "HF_HUB_", "TRANSFORMERS_", "TOKENIZERS_", "RAY_", "VLLM_"),
    *("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "HIP_", "ROCR_", "ROCM_", "HSA_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH_", "TORCHINDUCTOR_", "PYTORCH_", "TRITON_", "FLASHINFER_"),
)
_GUARD = "DND_OFFLINE_GUARD"
"""Where the core says which folder of PYTHONPATH keeps Python children offline."""


def server_environment(ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of our environment what vLLM's Python may have; PYTHONPATH leads to the core's guard alone."""
    kept = {name: value for name, value in ours.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return kept | ({"PYTHONPATH": ours[_GUARD]} if ours.get(_GUARD) else {})
