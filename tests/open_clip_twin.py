"""A tiny CLIP as OpenCLIP writes it: its parameters have OpenCLIP's names, and it computes without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 24,
        "quick_gelu": False,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32, "mlp_ratio": 2.0},
        "text_cfg": {"context_length": 16, "vocab_size": 0, "width": 32, "heads": 4, "layers": 2, "mlp_ratio": 4.0},
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"},
}


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, quick: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self._quick = quick

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        inner = self.mlp["c_fc"](self.ln_2(x))
        active = inner * torch.sigmoid(1.702 * inner) if self._quick else functional.gelu(inner)
        return x + self.mlp["c_proj"](active)


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, ratio: float, quick: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, int(width * ratio), quick) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    def __init__(self, embed: int, shape: dict[str, Any], quick: bool) -> None:
        super().__init__()
        width, patch = shape["width"], shape["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((shape["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        heads = width // shape["head_width"]
        self.transformer = Transformer(width, heads, shape["layers"], shape["mlp_ratio"], quick)
        self.proj = nn.Parameter(torch.randn(width, embed))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(pixels), 1, -1), patches), 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Twin(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        text, embed, quick = settings["text_cfg"], settings["embed_dim"], settings["quick_gelu"]
        width, length = text["width"], text["context_length"]
        self.visual = Vision(embed, settings["vision_cfg"], quick)
        self.transformer = Transformer(width, text["heads"], text["layers"], text["mlp_ratio"], quick)
        self.token_embedding = nn.Embedding(text["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, embed))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def image(self, image: Image.Image, side: int) -> torch.Tensor:
        """(1, d): shrunk to `side` at the shorter edge, cropped in the middle, normalized."""
        width, height = image.size
        scale = side / min(width, height)
        shrunk = image.convert("RGB").resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = (shrunk.width - side) // 2, (shrunk.height - side) // 2
        pixels = np.asarray(shrunk.crop((left, top, left + side, top + side)), np.float32) / 255
        normal = (pixels - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        return self.visual(torch.tensor(normal).permute(2, 0, 1)[None])

    def text(self, ids: list[int]) -> torch.Tensor:
        """(1, d), from ids filled up with 0, as OpenCLIP's tokenizer gives them."""
        length = len(self.positional_embedding)
        row = torch.tensor([ids + [0] * (length - len(ids))])
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(row) + self.positional_embedding, mask))
        return x[:, int(row.argmax())] @ self.text_projection


def write(folder: Path, tokenizer: Any, *, separate: bool = False, **changes: Any) -> Twin:
    """`separate`: the text tower's names begin with "text.", as in OpenCLIP's CustomTextCLIP. `changes` are of the
    model_cfg."""
    settings = json.loads(json.dumps(CONFIG))
    settings["model_cfg"] |= changes
    settings["model_cfg"]["text_cfg"]["vocab_size"] = len(tokenizer)
    torch.manual_seed(0)
    twin = Twin(settings["model_cfg"]).eval()
    for one in twin.parameters():
        one.data = one.data + 0.02 * torch.randn(one.shape)  # no bias is 0, no norm is 1
    own = ("visual.", "logit_scale")
    names = {name: name if name.startswith(own) or not separate else f"text.{name}" for name in twin.state_dict()}
    save_file(
        {names[name]: tensor for name, tensor in twin.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    tokenizer.save_pretrained(folder)
    return twin
