"""Small networks whose layers are read: what one lambda makes of the input is a layer's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dnd.config.run import LayerSettings
from dnd.target.hooked import HookedTarget
from dnd.target.layout import Reading

EDGE = 64


def preprocess(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image.resize((EDGE, EDGE)), np.float32) / 255).permute(2, 0, 1)


class Net(nn.Module):
    """What `change` makes of the input is the output of `layer`, and then of what is in it."""

    def __init__(self, change: Callable[[Tensor], Any], *inside: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*inside)
        self.change = change

    def forward(self, x: Tensor) -> Any:
        return self.layer(self.change(x))


def read(net: nn.Module, layer: str = "layer", **settings: Any) -> Reading:
    torch.manual_seed(0)
    with HookedTarget(net, preprocess, [layer], reads=LayerSettings(**settings)) as hooked:
        return hooked.readings[layer]


def patches(x: Tensor, edge: int = 8) -> Tensor:
    """(B, 3, 64, 64) -> (B, N, 3 x edge x edge), row by row."""
    return nn.functional.unfold(x, edge, stride=edge).transpose(1, 2)


def with_class(tokens: Tensor, count: int = 1, at: int = 0) -> Tensor:
    extra = tokens.mean(1, keepdim=True).expand(-1, count, -1)
    return torch.cat([tokens[:, :at], extra, tokens[:, at:]], 1)
