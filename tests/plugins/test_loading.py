"""Checkpoints that are not whole: no plugin goes on with weights that its library made up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dnd import api
from dnd_blip2 import Blip2Captioner, Blip2Config
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_microworld import world
from dnd_scorers import ClipRank
from dnd_sdxl import SdxlConfig, SdxlGenerator

WEIGHTS = Path(world.__file__).parent / "weights"
PLUGINS: dict[str, tuple[Any, Any]] = {
    "blip2": (Blip2Captioner, Blip2Config),
    "llama": (LlamaSummarizer, LlamaConfig),
    "clip": (ClipRank, ClipRank.Config),
    "sdxl": (SdxlGenerator, SdxlConfig),
}
"""By the models of the microworld that they load."""
FILES = {
    "blip2": ("model", "language_model.model.decoder.layers.0.fc1.weight"),
    "llama": ("model", "model.layers.0.mlp.up_proj.weight"),
    "clip": ("model", "text_model.encoder.layers.0.mlp.fc1.weight"),
    "sdxl": ("unet/diffusion_pytorch_model", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"),
    "sdxl encoder": ("text_encoder/model", "mlp.fc1.weight"),
    "sdxl second": ("text_encoder_2/model", "text_projection.weight"),
    "sdxl vae": ("vae/diffusion_pytorch_model", "decoder.conv_in.weight"),
}
"""A weights file and one of its tensors, by its end."""
Change = Callable[[dict[str, torch.Tensor], str], None]


def load(what: str, folder: Path, change: Change) -> None:
    """Load a copy of the microworld's model whose file was changed."""
    architecture = what.partition(" ")[0]
    shutil.copytree(WEIGHTS / f"microworld-{architecture}", folder)
    file, end = FILES[what]
    path = folder / f"{file}.safetensors"
    tensors = load_file(path)
    change(tensors, next(name for name in tensors if name.endswith(end)))
    save_file(tensors, path, {"format": "pt"})
    backend, config = PLUGINS[architecture]
    with backend(config(model="mine"), api.Runtime("cpu", lambda name: folder)):
        pass


@pytest.mark.parametrize("what", FILES)
def test_a_tensor_that_is_missing_is_named(what: str, tmp_path: Path) -> None:
    with pytest.raises(api.ModelError, match=rf"weights of 'mine' are not whole: .*{FILES[what][1]} is missing"):
        load(what, tmp_path / "model", lambda tensors, name: tensors.__delitem__(name))


@pytest.mark.parametrize("what", FILES)
def test_a_tensor_that_no_part_knows_is_named(what: str, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[f"adapter.{name}"] = tensors[name].clone()

    with pytest.raises(api.ModelError, match=r"are not whole: \S*adapter\S* belongs to no part of it"):
        load(what, tmp_path / "model", add)


@pytest.mark.parametrize("what", FILES)
def test_a_tensor_of_another_shape_is_named(what: str, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name] = tensors[name][:1].clone()

    with pytest.raises(api.ModelError, match=FILES[what][1]):
        load(what, tmp_path / "model", cut)


def test_a_whole_text_tower_is_missed(tmp_path: Path) -> None:
    def behead(tensors: dict[str, torch.Tensor], name: str) -> None:
        for one in [one for one in tensors if one.startswith("text_model.")]:
            del tensors[one]

    with pytest.raises(api.ModelError, match=r"text_model\S+ and \d+ more are missing"):
        load("clip", tmp_path / "model", behead)


@pytest.mark.parametrize("what", ["clip", "sdxl encoder"])
def test_constants_of_older_checkpoints_are_welcome(what: str, tmp_path: Path) -> None:
    """OpenAI's CLIP files hold the numbers of the positions."""

    def add(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors["text_model.embeddings.position_ids"] = torch.arange(8)[None]

    load(what, tmp_path / "model", add)


def sharded(folder: Path, part: str, size: str) -> list[Path]:
    """A copy of the microworld's model in the folder, with the weights of its language model or UNet in shards."""
    from diffusers import UNet2DConditionModel
    from transformers import AutoModelForCausalLM

    shutil.copytree(WEIGHTS / f"microworld-{part}", folder)
    place = folder / "unet" if part == "sdxl" else folder
    kind: Any = UNet2DConditionModel if part == "sdxl" else AutoModelForCausalLM
    model = kind.from_pretrained(place)
    for file in place.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(place, max_shard_size=size)
    return sorted(place.glob("*-of-*.safetensors"))


@pytest.mark.parametrize(("part", "size"), [("llama", "300KB"), ("sdxl", "3MB")])
@pytest.mark.parametrize("fault", ["none", "gone", "cut", "short"])
def test_shards_are_whole_or_the_model_is_refused(part: str, size: str, fault: str, tmp_path: Path) -> None:
    shards = sharded(tmp_path / "model", part, size)
    assert len(shards) > 2
    if fault == "gone":
        shards[1].unlink()
    elif fault == "cut":
        shards[1].write_bytes(shards[1].read_bytes()[:-1000])
    elif fault == "short":  # the index promises it
        tensors = load_file(shards[1])
        del tensors[min(tensors)]
        save_file(tensors, shards[1], {"format": "pt"})
    backend, config = PLUGINS[part]
    with (
        nullcontext() if fault == "none" else pytest.raises(api.ModelError, match="'mine'"),
        backend(config(model="mine"), api.Runtime("cpu", lambda name: tmp_path / "model")),
    ):
        pass


def test_a_fault_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(api.ModelError):
        load("llama", tmp_path / "model", lambda tensors, name: tensors.__delitem__(name))
    assert "MISSING" not in capfd.readouterr().err
