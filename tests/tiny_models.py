"""Tiny checkpoints of real architectures with random weights, as their libraries write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "a",
    "an",
    "the",
    "red",
    "blue",
    "green",
    "dog",
    "cat",
    "star",
    "photo",
    "of",
    "on",
    "in",
    "with",
    "grass",
    "table",
    "this",
    "image",
    "shows",
    "what",
    "is",
    "sky",
]
_WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def blip(folder: Path) -> Path:
    """A BLIP of 32-pixel images whose decoder knows `WORDS`."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    tokenizer: Any = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    vision = {**_WIDTHS, "image_size": 32, "patch_size": 8}
    text = {**_WIDTHS, "encoder_hidden_size": 64, "vocab_size": len(vocabulary), "max_position_embeddings": 64}
    tokens = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config: Any = BlipConfig(vision_config=vision, text_config={**text, **tokens}, initializer_range=0.3)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config).eval()
    with torch.no_grad():  # never a token that is not a word, the end included: greedy decoding loops, as real ones may
        model.text_decoder.cls.predictions.bias[:6] = -100
        model.text_decoder.cls.predictions.decoder.bias[:6] = -100
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %} {{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %} shows"
)
"""A chat template, but for what an architecture marks an image with."""
_TEXT = {**_WIDTHS, "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.5, "tie_word_embeddings": False}
_TEXT |= {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
_SIGLIP = {**_WIDTHS, "image_size": 28, "patch_size": 14}


def _tokenizer(special: dict[str, str], marks: Sequence[str] = ()) -> Any:
    """Words between spaces. `special` has the tokens that the processor knows by name."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<unk>", "<end>", *special.values(), *marks, *WORDS]
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=special, **ends)
    tokenizer.add_tokens(list(marks), special_tokens=True)
    return tokenizer


def _write(folder: Path, model: Any, processor: str, images: Any, tokenizer: Any, image: str, **settings: Any) -> Path:
    """The files of a hub's folder. The model says words alone: the rows of all other tokens are zero."""
    with torch.no_grad():
        model.get_output_embeddings().weight[: len(tokenizer) - len(WORDS)] = 0
    model.save_pretrained(folder)
    tokenizer.chat_template = CHAT.replace("IMAGE", image)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor, **settings}))
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

    special = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = _tokenizer(special, ["<|vision_start|>", "<|vision_end|>"])
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"window_size": 56, "fullatt_block_indexes": [1], "initializer_range": 0.5}
    config: Any = Qwen2_5_VLConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    mark = " <|vision_start|> <|image_pad|> <|vision_end|>"
    model = Qwen2_5_VLForConditionalGeneration(config)
    return _write(folder, model, "Qwen2_5_VLProcessor", images, tokenizer, mark)


def qwen3_vl(folder: Path) -> Path:
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    special = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    special |= {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
    tokenizer = _tokenizer(special)
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16, "initializer_range": 0.5}
    config: Any = Qwen3VLConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 64 * 64, "longest_edge": 128 * 128}, patch_size=16)
    mark = " <|vision_start|> <|image_pad|> <|vision_end|>"
    model = Qwen3VLForConditionalGeneration(config)
    return _write(folder, model, "Qwen3VLProcessor", images, tokenizer, mark)


def llava_onevision(folder: Path) -> Path:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = _tokenizer({"image_token": "<image>", "video_token": "<video>"})
    grid = [[28, 28], [28, 56], [56, 28], [56, 56]]
    config: Any = LlavaOnevisionConfig(
        text_config=Qwen2Config(**{**_TEXT, "vocab_size": len(tokenizer)}).to_dict(),
        vision_config=SiglipVisionConfig(**_SIGLIP, vision_use_head=False).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grid,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    images = LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=grid)
    model = LlavaOnevisionForConditionalGeneration(config)
    more = {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}
    return _write(folder, model, "LlavaOnevisionProcessor", images, tokenizer, " <image>", **more)


def gemma3(folder: Path) -> Path:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessorPil

    special = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(special)
    ids = tokenizer.convert_tokens_to_ids
    config: Any = Gemma3Config(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "query_pre_attn_scalar": 32},
        vision_config={**_SIGLIP, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero at first
    return _write(folder, model, "Gemma3Processor", images, tokenizer, " <start_of_image>", image_seq_length=4)


def internvl(folder: Path) -> Path:
    from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

    special = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = _tokenizer({**special, "video_token": "<video>"})
    config: Any = InternVLConfig(
        text_config=Qwen2Config(**{**_TEXT, "vocab_size": len(tokenizer)}).to_dict(),
        vision_config={**_WIDTHS, "image_size": [28, 28], "patch_size": [7, 7], "initializer_range": 0.5},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    images = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=2)
    model = InternVLForConditionalGeneration(config)
    return _write(folder, model, "InternVLProcessor", images, tokenizer, " <IMG_CONTEXT>", image_seq_length=4)


def smolvlm(folder: Path) -> Path:
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil

    special = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    special |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    places = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    tokenizer = _tokenizer(special, places)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config: Any = SmolVLMConfig(
        text_config=LlamaConfig(**{**_TEXT, "vocab_size": len(tokenizer)}).to_dict(),
        vision_config={**_WIDTHS, "image_size": 56, "patch_size": 14},
        image_token_id=image,
        scale_factor=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    images = SmolVLMImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    model = SmolVLMForConditionalGeneration(config)
    return _write(folder, model, "SmolVLMProcessor", images, tokenizer, " <image>", image_seq_len=4)


VLMS: dict[str, Callable[[Path], Path]] = {
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "LLaVA-OneVision": llava_onevision,
    "Gemma 3": gemma3,
    "InternVL": internvl,
    "SmolVLM": smolvlm,
}


def siglip(folder: Path) -> Path:
    """A SigLIP as SigLIP 2's models of one resolution have it: 16-pixel patches, texts of 64 tokens."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = _tokenizer({})
    text = {**_WIDTHS, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 64}
    config: Any = SiglipConfig(text_config=text, vision_config={**_WIDTHS, "image_size": 32, "patch_size": 16})
    torch.manual_seed(0)
    SiglipModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "SiglipProcessor"}))
    return folder


_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def _clip_text(vocabulary: int, kind: str = "CLIPTextModel") -> Any:
    import transformers

    places = {"max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPTextConfig(**_WIDTHS, **places, vocab_size=vocabulary, projection_dim=64)
    return getattr(transformers, kind)(config)


def _clip_tokenizer() -> Any:
    tokenizer = _tokenizer({})
    tokenizer.model_max_length = 16
    return tokenizer


def _t5(vocabulary: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=vocabulary, d_model=64, d_kv=32, d_ff=64, num_layers=1, num_heads=2))


def _vae(channels: int, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), latent_channels=channels, norm_num_groups=8, sample_size=16, **_BLOCKS, **more
    )


def stable_diffusion_1(folder: Path) -> Path:
    """With a safety checker that finds every image unsafe, as the published pipeline has one."""
    import diffusers
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessorPil

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=_WIDTHS, vision_config={**_WIDTHS, "image_size": 16, "patch_size": 8}, projection_dim=64)
    )
    pipeline: Any = diffusers.StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=_clip_text(len(tokenizer)),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**_UNET, cross_attention_dim=64, attention_head_dim=4),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=checker,
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16),
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_3(folder: Path) -> Path:
    import diffusers

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    pipeline: Any = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            caption_projection_dim=64,
            joint_attention_dim=128,
            pooled_projection_dim=128,
            pos_embed_max_size=16,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip_text(len(tokenizer), "CLIPTextModelWithProjection"),
        tokenizer=tokenizer,
        text_encoder_2=_clip_text(len(tokenizer), "CLIPTextModelWithProjection"),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.save_pretrained(folder)
    return folder


def flux(folder: Path) -> Path:
    import diffusers

    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    pipeline: Any = diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip_text(len(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=_t5(len(tokenizer)),
        tokenizer_2=_tokenizer({}),
    )
    pipeline.save_pretrained(folder)
    return folder


def pixart(folder: Path) -> Path:
    import diffusers

    torch.manual_seed(0)
    tokenizer = _tokenizer({})
    pipeline: Any = diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=64,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            norm_num_groups=1,
            use_additional_conditions=False,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        vae=_vae(4),
        text_encoder=_t5(len(tokenizer)),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder)
    return folder


def sana(folder: Path) -> Path:
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    tokenizer = _tokenizer({})
    text = {**_TEXT, "vocab_size": len(tokenizer), "query_pre_attn_scalar": 32}
    pipeline: Any = diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            sample_size=16,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=64,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        text_encoder=Gemma2Model(Gemma2Config(**text)),
        tokenizer=tokenizer,
    )
    pipeline.save_pretrained(folder)
    return folder


PIPELINES: dict[str, Callable[[Path], Path]] = {
    "Stable Diffusion 1": stable_diffusion_1,
    "Stable Diffusion 3": stable_diffusion_3,
    "FLUX": flux,
    "PixArt-Sigma": pixart,
    "Sana": sana,
}
