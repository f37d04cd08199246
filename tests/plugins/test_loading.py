"""Checkpoints that are not whole: no plugin goes on with weights that its library made up."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import needs
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


@pytest.mark.parametrize("what", FILES)
def test_weights_that_are_integers_are_refused(what: str, tmp_path: Path) -> None:
    """A checkpoint packed by a library whose settings did not come along."""

    def round_all(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors |= {key: tensor.to(torch.int8) for key, tensor in tensors.items()}

    with pytest.raises(api.ModelError, match="the weights of 'mine' are integers"):
        load(what, tmp_path / "model", round_all)


@pytest.mark.parametrize("what", FILES)
def test_weights_that_are_no_numbers_are_refused(what: str, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor], name: str) -> None:
        tensors[name].fill_(float("nan"))

    with pytest.raises(api.ModelError, match=r"'mine' hold what is no number: \S+"):
        load(what, tmp_path / "model", spoil)


@pytest.mark.parametrize(
    ("what", "part"),
    [("blip2", "."), ("llama", "."), ("clip", "."), ("sdxl", "tokenizer"), ("sdxl", "tokenizer_2")],
)
def test_a_tokenizer_without_its_files_is_refused(what: str, part: str, tmp_path: Path) -> None:
    """The library makes an empty one, by which every text is the same."""
    folder = shutil.copytree(WEIGHTS / f"microworld-{what}", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt"):
        (folder / part / name).unlink(missing_ok=True)
    backend, config = PLUGINS[what]
    with pytest.raises(api.ModelError, match="tokenizer"):
        backend(config(model="mine"), api.Runtime("cpu", lambda name: folder)).load()


def say(folder: Path, **packing: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": packing}))


@pytest.mark.parametrize("what", ["blip2", "llama", "clip"])
def test_weights_that_are_not_packed_as_their_config_says_are_refused(what: str, tmp_path: Path) -> None:
    """Left over from a checkpoint that was packed: they would be read as what they are not."""
    folder = shutil.copytree(WEIGHTS / f"microworld-{what}", tmp_path / "model")
    say(folder, quant_method="bitsandbytes", load_in_4bit=True)
    counter = {"batches_tracked": torch.tensor(3)}
    save_file(load_file(folder / "model.safetensors") | counter, folder / "model.safetensors", {"format": "pt"})
    backend, config = PLUGINS[what]
    with pytest.raises(api.ModelError, match="weights of 'mine' are not packed"):
        backend(config(model="mine"), api.Runtime("cpu", lambda name: folder)).load()


@needs.bitsandbytes
def test_a_checkpoint_that_is_packed_already_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = WEIGHTS / "microworld-llama"
    folder = shutil.copytree(plain, tmp_path / "model")
    packing: Any = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    AutoModelForCausalLM.from_pretrained(plain, quantization_config=packing).save_pretrained(folder)
    request = api.SummaryRequest(("a red star", "a blue star on a green background", "a white star"), 3, 1)
    with LlamaSummarizer(LlamaConfig(model="mine"), api.Runtime("cpu", lambda name: folder)) as summarizer:
        assert "star" in summarizer.summarize([request])[0]


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_package_that_a_checkpoint_was_packed_with_is_named(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(WEIGHTS / "microworld-llama", tmp_path / "model")
    say(folder, quant_method=method, bits=4)
    tensors = {name: tensor.to(torch.int32) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for package in ("optimum", "gptqmodel"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(api.UsageError, match=r"'mine' needs a package that is missing: .*(optimum|gptqmodel)"):
        LlamaSummarizer(LlamaConfig(model="mine"), api.Runtime("cpu", lambda name: folder)).load()


def test_a_chat_template_that_cannot_be_read_is_told_as_it_loads(tmp_path: Path) -> None:
    folder = shutil.copytree(WEIGHTS / "microworld-llama", tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for message in %}")
    with pytest.raises(api.ModelError, match=r"'mine' .* does not load as a language model: Expected an expression"):
        LlamaSummarizer(LlamaConfig(model="mine"), api.Runtime("cpu", lambda name: folder)).load()


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
