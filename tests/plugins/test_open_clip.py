"""CLIP in OpenCLIP's own format: the same embeddings as an independent computation, and refusals of what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip_twin
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from dnd import api
from dnd.testing import evidence, images, runtime
from dnd_hf.clip import ClipConfig, ClipEncoder
from dnd_scorers.clip import ClipRank, ClipScorerConfig

TEXTS = ["red", "a red star", "a photo of a blue circle", "red", "a star " * 9]
SIZES = [(64, 64), (80, 40), (33, 71)]


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(runtime().weights("microworld-clip"))


def encoder(folder: Path, **settings: Any) -> ClipEncoder:
    return ClipEncoder(ClipConfig(model="tiny", **settings), runtime(folders={"tiny": folder}))


def shown() -> list[Image.Image]:
    return [image.resize(size) for image, size in zip(images(3), SIZES, strict=True)]


@pytest.mark.parametrize("settings", [{}, {"quick_gelu": True, "custom_text": True, "separate": True}])
def test_it_computes_what_open_clip_does(tmp_path: Path, settings: dict[str, Any]) -> None:
    twin, reads = open_clip_twin.write(tmp_path, tokenizer(), **settings), tokenizer()
    with torch.inference_mode():
        seen = [twin.image(image, 32) for image in shown()]
        read = [twin.text(reads(text, truncation=True, max_length=16).input_ids) for text in TEXTS]
    wanted = torch.nn.functional.normalize(torch.cat((*seen, *read))).numpy()
    with encoder(tmp_path) as backend:
        found = np.stack(backend.encode([*shown(), *TEXTS]))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01
    assert np.abs(found[3] - found[4]).max() > 0.01


def test_activations_matter_to_the_comparison(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("gelu", "quick")]
    for folder in folders:
        folder.mkdir()
        open_clip_twin.write(folder, tokenizer(), quick_gelu=folder.name == "quick")
    with encoder(folders[0]) as one, encoder(folders[1]) as other:
        assert np.abs(np.stack(one.encode(TEXTS)) - np.stack(other.encode(TEXTS))).max() > 1e-4


def test_half_precision_and_memory(tmp_path: Path) -> None:
    open_clip_twin.write(tmp_path, tokenizer())
    with encoder(tmp_path) as whole, encoder(tmp_path, dtype="bfloat16") as half:
        assert str(half.clip._model.dtype) == "torch.bfloat16"
        wanted, found = (np.stack(one.encode([*shown(), *TEXTS])) for one in (whole, half))
        assert half.memory() <= whole.memory()
    assert (found * wanted).sum(1) == pytest.approx(1, abs=0.01)


def test_scorers_take_it(tmp_path: Path) -> None:
    open_clip_twin.write(tmp_path, tokenizer())
    with ClipRank(ClipScorerConfig(model="tiny"), runtime(folders={"tiny": tmp_path})) as scorer:
        (scores,) = scorer.score([evidence()])
    assert len(set(scores)) == len(scores)
    assert all(0 < score < 1 for score in scores)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("visual.ln_pre.weight", None, "pre_layrnorm.weight is missing"),
        ("transformer.resblocks.1.mlp.c_fc.bias", None, "mlp.fc1.bias is missing"),
        ("transformer.resblocks.0.attn.in_proj_weight", None, "k_proj.weight and 2 more are missing"),
        ("visual.proj", None, "visual_projection.weight is missing"),
        ("visual.attn_pool.query", torch.zeros(3), "visual.attn_pool.query belongs to no part"),
        ("logit_bias", torch.zeros(()), "logit_bias belongs to no part"),
        ("text_projection", torch.zeros(32, 23), "text_projection.weight has another shape"),
    ],
)
def test_weights_are_whole_or_refused(tmp_path: Path, name: str, change: torch.Tensor | None, said: str) -> None:
    open_clip_twin.write(tmp_path, tokenizer())
    file = tmp_path / "open_clip_model.safetensors"
    weights = load_file(file)
    weights.pop(name, None)
    save_file(weights if change is None else {**weights, name: change}, file)
    with pytest.raises(api.ModelError, match=f"'tiny' are not whole: .*{said}"):
        encoder(tmp_path).load()


@pytest.mark.parametrize(
    ("part", "setting", "value"),
    [
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "no_ln_pre", True),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "no_causal_mask", True),
        ("text_cfg", "tokenizer_kwargs", {"clean": "canonicalize"}),
    ],
)
def test_other_architectures_are_named(tmp_path: Path, part: str, setting: str, value: object) -> None:
    open_clip_twin.write(tmp_path, tokenizer())
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"][part][setting] = value
    file.write_text(json.dumps(config))
    with pytest.raises(api.ModelError, match=f"cannot compute: {part}.{setting} is "):
        encoder(tmp_path).load()


def test_images_read_in_another_way_are_refused(tmp_path: Path) -> None:
    open_clip_twin.write(tmp_path, tokenizer())
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["preprocess_cfg"]["resize_mode"] = "longest"
    file.write_text(json.dumps(config))
    with pytest.raises(api.ModelError, match="not supported: RGB, bicubic, longest"):
        encoder(tmp_path).load()


def test_a_folder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    open_clip_twin.write(tmp_path, tokenizer())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(api.ModelError, match="tokenizer"):
        encoder(tmp_path).load()
