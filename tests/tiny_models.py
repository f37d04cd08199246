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
