"""The models of the run file `full` with random weights: the shapes are the published ones, the weights mean nothing.

Speed and memory do not depend on what weights say. `tiny` has the same classes at a size that a test can afford.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dnd.digests import sha256_of
from dnd.lockfile import LockedFile, LockedModel, write_lock
from dnd_microworld import world

MODELS = {"blip2": "blip2-opt-2.7b", "llama": "llama-3.1-8b-instruct", "sdxl": "sdxl-base-1.0"}
"""Backend -> its model in models.lock."""
_TOKENIZERS = Path(world.__file__).parent / "weights"
_WORDS, _QUERIES = {"tiny": 300, "full": 50304}, {"tiny": 4, "full": 32}
_IMAGE_TOKEN = 4

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


def model_name(backend: str, size: str) -> str:
    """The full-size one takes the name of the real one, so that its rates count for it."""
    return MODELS[backend] if size == "full" else f"{size}-{MODELS[backend]}"


def blip2_model(size: str) -> Any:
    """BLIP-2 with OPT-2.7b."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    side = {"tiny": 28, "full": 224}[size]
    width = _VISION[size]["hidden_size"]
    text = {"vocab_size": _WORDS[size], "word_embed_proj_dim": _OPT[size]["hidden_size"], **_OPT[size]}
    config = Blip2Config(
        vision_config={"image_size": side, "patch_size": 14, **_VISION[size]},
        qformer_config={"encoder_hidden_size": width, "cross_attention_frequency": 2, **_QFORMER[size]},
        text_config={"model_type": "opt", "max_position_embeddings": 2048, **text},
        num_query_tokens=_QUERIES[size],
        image_token_index=_IMAGE_TOKEN,
    )
    return Blip2ForConditionalGeneration(config)


def llama_model(size: str) -> Any:
    """Llama-3.1-8B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}  # of the microworld's tokenizer
    rope = {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "max_position_embeddings": 131072}
    return LlamaForCausalLM(LlamaConfig(**_LLAMA[size], **ids, **rope, rms_norm_eps=1e-5, tie_word_embeddings=False))


def sdxl_parts(size: str) -> dict[str, Callable[[], Any]]:
    """Each part of SDXL, made when called."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    places = {"tiny": 20, "full": 77}[size]
    first, second = (
        CLIPTextConfig(
            **{"hidden_act": "quick_gelu", **text},
            vocab_size=49408,
            max_position_embeddings=places,
            projection_dim=text["hidden_size"],
            bos_token_id=651,  # of the microworld's tokenizer
            eos_token_id=652,
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
            force_upcast=True,
        ),
    }


# --- to disk ------------------------------------------------------------------------------------------


def save(backend: str, size: str, device: str, folder: Path) -> None:
    """A random model of a backend, drawn on the device, in half precision as safetensors with what it needs."""
    folder.mkdir(parents=True)
    {"blip2": _save_blip2, "llama": _save_llama, "sdxl": _save_sdxl}[backend](size, device, folder)


def _drawn(build: Callable[[], Any], device: str) -> Any:
    """A model in float16 whose weights are drawn on the device, as its class begins a training."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        torch.manual_seed(0)
        with torch.device(device):
            return build()
    finally:
        torch.set_default_dtype(usual)


def _save_blip2(size: str, device: str, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Blip2Processor, PreTrainedTokenizerFast
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *(f"w{number}" for number in range(_WORDS[size] - 5))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##")
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=["<image>"], **named)
    side = {"tiny": 28, "full": 224}[size]
    pictures = BlipImageProcessorPil(size={"height": side, "width": side})
    Blip2Processor(pictures, tokenizer, num_query_tokens=_QUERIES[size]).save_pretrained(folder)
    _drawn(lambda: blip2_model(size), device).save_pretrained(folder)


def _save_llama(size: str, device: str, folder: Path) -> None:
    for file in (_TOKENIZERS / "microworld-llama").iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(file, folder)
    _drawn(lambda: llama_model(size), device).save_pretrained(folder)


def _save_sdxl(size: str, device: str, folder: Path) -> None:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTokenizer

    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    length = {"tiny": 20, "full": 77}[size]
    tokenizer = CLIPTokenizer.from_pretrained(_TOKENIZERS / "microworld-sdxl" / "tokenizer", model_max_length=length)
    parts = {name: _drawn(build, device) for name, build in sdxl_parts(size).items()}
    pipeline = StableDiffusionXLPipeline(
        **parts, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler, add_watermarker=False
    )
    pipeline.save_pretrained(folder)


@contextmanager
def lent(backend: str, size: str, device: str, work: Path | None) -> Iterator[dict[str, str]]:
    """A store with one random model and its models.lock, as environment variables; gone afterwards."""
    with tempfile.TemporaryDirectory(dir=work) as place:
        store, name = Path(place), model_name(backend, size)
        save(backend, size, device, store / name)
        files = tuple(
            LockedFile(path=path.relative_to(store / name).as_posix(), size=path.stat().st_size, sha256=sha256_of(path))
            for path in sorted((store / name).rglob("*"))
            if path.is_file()
        )
        entry = LockedModel(
            name=name, role="random", source=f"hub:random/weights@{0:040}", licence="none", gated=False, files=files
        )
        write_lock(store / "random.lock", {name: entry})
        yield {"DND_MODELS": place, "DND_LOCK": str(store / "random.lock"), "DND_CACHE": str(store / "cache")}
