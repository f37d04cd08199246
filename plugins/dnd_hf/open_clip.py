"""CLIP from a folder in OpenCLIP's own format: open_clip_config.json, open_clip_model.safetensors, a CLIP tokenizer.

The weights go under other names into the class of transformers, which computes the same. What that class cannot compute
(towers of timm, text towers of other kinds, other poolings) is refused by the name of the setting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd import api
from dnd_hf.loading import LOCAL, load_whole

if TYPE_CHECKING:
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_VISION = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0}
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
_PREPROCESSING = {"size": 224, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
"""OpenCLIP's defaults, where a config leaves a setting out."""
_HARMLESS = {
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "block_type": ("default",),
}
"""Values that settings may have which a plain CLIP has no use for, beside none, false and 0."""
_WITHOUT_EFFECT = frozenset({"patch_dropout", "init_logit_scale", "custom_text", "output_tokens", "hf_tokenizer_name"})
_WITHOUT_EFFECT |= {"pad_id", "eos_id", "attn_pooler_queries", "attn_pooler_heads"}
"""Settings of the training, of poolings that are not used, or of files that the folder has itself."""
_NAMES = (
    (r"^text\.(?=positional|transformer|token|ln_final|text_projection)", ""),
    (r"^visual\.transformer\.resblocks", "vision_model.encoder.layers"),
    (r"^transformer\.resblocks", "text_model.encoder.layers"),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
)
"""Patterns of OpenCLIP's names, and what transformers has instead; applied one after another."""
_OTHER_FORMAT = "use the model in the format of transformers, where its authors publish it so, or another CLIP"
_PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def is_alone(folder: Path) -> bool:
    """Whether this is the only format that the folder has its model in."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def load(folder: Path, name: str, dtype: torch.dtype) -> tuple[CLIPProcessor, CLIPModel]:
    """Processor and model, in the CPU's memory. Raises ModelError where the model is of another kind or not whole."""
    from safetensors.torch import load_file
    from transformers import CLIPModel

    settings = json.loads((folder / CONFIG).read_text("utf-8"))
    config = model_config(settings["model_cfg"], name)
    weights = renamed(load_file(folder / WEIGHTS))
    model: CLIPModel = load_whole(CLIPModel, None, name, config=config, state_dict=weights, dtype=dtype)
    return _processor(folder, settings.get("preprocess_cfg", {}), config, name), model


def model_config(settings: Mapping[str, Any], name: str) -> CLIPConfig:
    """`settings`: the model_cfg of an open_clip_config.json. Raises ModelError for what CLIP of transformers is not."""
    from transformers import CLIPConfig

    _refuse(name, "", settings, ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"))
    vision, text = ({**known, **settings[part]} for part, known in (("vision_cfg", _VISION), ("text_cfg", _TEXT)))
    _refuse(name, "vision_cfg.", vision, _VISION)
    _refuse(name, "text_cfg.", text, _TEXT)
    gelu = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    shared = {"hidden_act": gelu, "projection_dim": settings["embed_dim"]}
    return CLIPConfig(
        projection_dim=settings["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision["head_width"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            **shared,
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text["mlp_ratio"]),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "bos_token_id": text["vocab_size"] - 2,
            "eos_token_id": text["vocab_size"] - 1,
            "pad_token_id": 0,
            **shared,
        },
    )


def renamed(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's state dict under the names of transformers; a name that is none of OpenCLIP's stays what it is."""
    found: dict[str, torch.Tensor] = {}
    for old, tensor in weights.items():
        new = old
        for pattern, replacement in _NAMES:
            new = re.sub(pattern, replacement, new)
        if new in _PROJECTIONS:
            found[_PROJECTIONS[new]] = tensor.T.contiguous()
        elif packed := re.search(r"\.in_proj_(weight|bias)$", new):
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                found[f"{new[: packed.start()]}.{letter}_proj.{packed[1]}"] = part.clone()
        else:
            found[new] = tensor
    return found


def _processor(folder: Path, given: Mapping[str, Any], config: CLIPConfig, name: str) -> CLIPProcessor:
    """It shrinks, crops and normalizes as OpenCLIP does for this model."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPProcessor

    settings = {**_PREPROCESSING, **given}
    size, kind, mode = config.vision_config.image_size, settings["interpolation"], settings["resize_mode"]
    if kind not in ("bicubic", "bilinear") or mode not in ("shortest", "squash") or settings["mode"] != "RGB":
        raise api.ModelError(
            f"{name!r} reads images in a way that is not supported: {settings['mode']}, {kind}, {mode}",
            _OTHER_FORMAT,
        )
    square = {"height": size, "width": size}
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size} if mode == "shortest" else square,
        do_center_crop=mode == "shortest",
        crop_size=square,
        resample={"bilinear": 2, "bicubic": 3}[kind],
        image_mean=settings.get("mean") or _MEAN,
        image_std=settings.get("std") or _STD,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    wanted = config.text_config.vocab_size
    if len(tokenizer) != wanted or tokenizer.eos_token_id != wanted - 1:  # OpenCLIP pools at the highest token
        raise api.ModelError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens and ends texts with number"
            f" {tokenizer.eos_token_id}; the model has {wanted} and wants the last",
            "put the tokenizer's files of the model beside its weights: tokenizer.json and tokenizer_config.json",
        )
    return CLIPProcessor(images, tokenizer)


def _refuse(name: str, part: str, settings: Mapping[str, Any], known: Collection[str]) -> None:
    """ModelError for a setting by which the model is no plain CLIP."""
    for key, value in settings.items():
        if key in known or key in _WITHOUT_EFFECT or not value or value in _HARMLESS.get(key, ()):
            continue
        raise api.ModelError(
            f"{name!r} is an OpenCLIP model that the CLIP of transformers cannot compute: {part}{key} is {value!r}",
            _OTHER_FORMAT,
        )
