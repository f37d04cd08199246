"""The models of the run file `full` without weights: the shapes are those of the published checkpoints.

`tiny` has the same classes at a size that a test can afford. random_weights.py writes them to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MODELS = {
    "blip2": "blip2-opt-2.7b",
    "blip2-t5": "blip2-flan-t5-xl",
    "llama": "llama-3.1-8b-instruct",
    "sdxl": "sdxl-base-1.0",
    "clip": "clip-vit-large-patch14",
}
"""Architecture -> its model in models.lock."""
N_WORDS = {"opt": {"tiny": 300, "full": 50304}, "t5": {"tiny": 300, "full": 32128}}
"""The vocabularies of BLIP-2's language models."""
N_QUERIES = {"tiny": 4, "full": 32}
IMAGE_TOKEN = 4
SIDE = {"tiny": 28, "full": 224}
"""Pixels of BLIP-2's and CLIP's square input."""
N_PLACES = {"tiny": 20, "full": 77}
"""Tokens that CLIP's text towers read."""
N_CLIP_TOKENS = 49408
"""That they know."""

_VISION = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "full": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16},
}
_QFORMER = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "full": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
}
_OPT = {
    "tiny": {"hidden_size": 64, "ffn_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "full": {"hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32},
}
_T5 = {
    "tiny": {"d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2},
    "full": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
}
_LLAMA = {
    "tiny": {"vocab_size": 129, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1},
    "full": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8},
}
_UNET: dict[str, dict[str, Any]] = {
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 128,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 112,
    },
    "full": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_VAE = {"tiny": (32, 32), "full": (128, 256, 512, 512)}
_TEXT = {
    "tiny": [{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}] * 2,
    "full": [
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
        | {"hidden_act": "gelu"},
    ],
}


_CLIP: dict[str, dict[str, dict[str, int]]] = {
    "tiny": {"text_config": _TEXT["tiny"][0], "vision_config": _VISION["tiny"]},
    "full": {
        "text_config": _TEXT["full"][0],
        "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        | {"num_attention_heads": 16},
    },
}
_ENDS = {"bos_token_id": 651, "eos_token_id": 652}
"""Of the microworld's CLIP tokenizer."""


def model_name(architecture: str, size: str) -> str:
    """The full-size one takes the name of the real one, so that its rates count for it."""
    return MODELS[architecture] if size == "full" else f"{size}-{MODELS[architecture]}"


def blip2_model(size: str, language: str = "opt") -> Any:
    """BLIP-2 with OPT-2.7b, or with Flan-T5-XL ("t5")."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    width = _VISION[size]["hidden_size"]
    text: dict[str, Any] = {"model_type": language, "vocab_size": N_WORDS[language][size]}
    if language == "opt":
        text |= {"word_embed_proj_dim": _OPT[size]["hidden_size"], "max_position_embeddings": 2048, **_OPT[size]}
    else:
        text |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **_T5[size]}
        text |= {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    config = Blip2Config(
        vision_config={"image_size": SIDE[size], "patch_size": 14, **_VISION[size]},
        qformer_config={"encoder_hidden_size": width, "cross_attention_frequency": 2, **_QFORMER[size]},
        text_config=text,
        num_query_tokens=N_QUERIES[size],
        image_token_index=IMAGE_TOKEN,
    )
    return Blip2ForConditionalGeneration(config)


def llama_model(size: str) -> Any:
    """Llama-3.1-8B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}  # of the microworld's tokenizer
    rope = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "max_position_embeddings": 131072}
    return LlamaForCausalLM(LlamaConfig(**_LLAMA[size], **ids, **rope, rms_norm_eps=1e-5, tie_word_embeddings=False))


def clip_model(size: str) -> Any:
    """CLIP ViT-L/14."""
    from transformers import CLIPConfig, CLIPModel

    text, vision = _CLIP[size]["text_config"], _CLIP[size]["vision_config"]
    return CLIPModel(
        CLIPConfig(
            text_config={**text, "vocab_size": N_CLIP_TOKENS, "max_position_embeddings": N_PLACES[size], **_ENDS},
            vision_config={**vision, "image_size": SIDE[size], "patch_size": 14},
            projection_dim=text["hidden_size"],
        )
    )


def sdxl_parts(size: str) -> dict[str, Callable[[], Any]]:
    """Each part of SDXL, made when called."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first, second = (
        CLIPTextConfig(
            **{"hidden_act": "quick_gelu", **text},
            vocab_size=N_CLIP_TOKENS,
            max_position_embeddings=N_PLACES[size],
            projection_dim=text["hidden_size"],
            **_ENDS,
        )
        for text in _TEXT[size]
    )
    channels = _VAE[size]
    return {
        "text_encoder": lambda: CLIPTextModel(first),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(second),
        "unet": lambda: UNet2DConditionModel(
            **_UNET[size], use_linear_projection=True, addition_embed_type="text_time", layers_per_block=2
        ),
        "vae": lambda: AutoencoderKL(
            sample_size=_UNET[size]["sample_size"] * 2 ** (len(channels) - 1),
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            latent_channels=4,
            layers_per_block=2,
            scaling_factor=0.13025,
            force_upcast=False,  # sdxl-vae-fp16-fix
        ),
    }
