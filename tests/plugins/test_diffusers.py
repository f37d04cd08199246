"""The generator "diffusers", on tiny text-to-image pipelines of several architectures with random weights."""

from __future__ import annotations

import json
import shutil
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from dnd import api
from dnd.testing import GeneratorContract, runtime
from dnd_diffusers import DiffusersConfig, DiffusersGenerator
from dnd_diffusers.prompts import embed_once
from dnd_hf.sizes import weight_bytes

REQUESTS = [api.ImageRequest(concept, seed) for seed in (1, 2) for concept in ("red dog", "blue star")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: build(root / name) for name, build in tiny_models.PIPELINES.items()}


def generator(folder: Path, **settings: Any) -> DiffusersGenerator:
    given = {"model": "tiny", "steps": 2, **settings}
    return DiffusersGenerator(DiffusersConfig(**given), runtime(folders={"tiny": folder}))


def pixels(backend: DiffusersGenerator, requests: list[api.ImageRequest] = REQUESTS) -> npt.NDArray[np.int64]:
    """(N, H, W, 3)."""
    return np.stack([np.asarray(image) for image in backend.generate(requests)]).astype(int)


class TestDiffusers(GeneratorContract):
    backend = DiffusersGenerator
    config = {"model": "tiny", "steps": 1}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _tiny(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "runtime", runtime(folders={"tiny": folders["Stable Diffusion 1"]}))


@pytest.mark.parametrize("name", [name for name in tiny_models.PIPELINES if name != "FLUX"])
def test_an_image_is_of_its_request_alone_and_of_the_same_noise_in_every_dtype(
    folders: dict[str, Path], name: str
) -> None:
    with generator(folders[name]) as backend:
        made = pixels(backend)
        assert len({image.tobytes() for image in made}) == 4, "concept and seed matter"
        assert made.std() > 5
        assert made.shape[1:3] == backend.image_size()[::-1]
        assert (pixels(backend, REQUESTS[2:3])[0] == made[2]).all()
    with generator(folders[name], dtype="bfloat16") as backend:
        assert np.abs(pixels(backend) - made).mean() < 3


def test_flux_packs_its_latents(folders: dict[str, Path]) -> None:
    """And says no size, so that it has the usual one: 128 latents a side."""
    assert generator(folders["FLUX"]).image_size() == (256, 256)
    with generator(folders["FLUX"], width=32, height=16, guidance=0) as backend:
        made = pixels(backend)
        assert made.shape == (4, 16, 32, 3)
        assert (pixels(backend, REQUESTS[3:])[0] == made[3]).all()
    with generator(folders["FLUX"], width=32, height=16, guidance=0, dtype="bfloat16") as backend:
        assert np.abs(pixels(backend) - made).mean() < 3


def test_the_image_is_what_diffusers_alone_gives(folders: dict[str, Path]) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    alone: Any = StableDiffusionPipeline.from_pretrained(folders["Stable Diffusion 1"], safety_checker=None)  # type: ignore[no-untyped-call]
    alone.scheduler = DPMSolverMultistepScheduler.from_config(alone.scheduler.config)  # type: ignore[no-untyped-call]
    images = alone(
        prompt=["a red dog", "a blue star"],
        num_inference_steps=3,
        guidance_scale=6.0,
        generator=[torch.Generator().manual_seed(1) for _ in range(2)],
    ).images
    settings = {"steps": 3, "guidance": 6.0, "scheduler": "dpm++", "prompt": "a {concept}"}
    with generator(folders["Stable Diffusion 1"], **settings) as backend:
        made = pixels(backend, REQUESTS[:2])
    assert np.abs(made - np.stack([np.asarray(image) for image in images]).astype(int)).max() <= 2


@pytest.mark.parametrize("name", tiny_models.PIPELINES)
def test_each_prompt_is_embedded_once_and_as_the_pipeline_does(
    folders: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    settings = {"width": 32, "height": 16} if name == "FLUX" else {}
    if name != "FLUX":
        settings |= {"negative_prompt": "sky"}
    with generator(folders[name], **settings) as backend:
        pipeline = backend._pipeline
        plain = type(pipeline).encode_prompt

        @wraps(plain)
        def counted(self: Any, prompt: Any, *args: Any, **named: Any) -> Any:
            asked.append(prompt)
            return plain(self, prompt, *args, **named)

        made = pixels(backend)
        del pipeline.encode_prompt
        assert np.abs(pixels(backend) - made).max() <= 2
        monkeypatch.setattr(type(pipeline), "encode_prompt", counted)
        embed_once(pipeline)
        pixels(backend)
        pixels(backend, REQUESTS[:1])
    assert asked == [["a photo of red dog"], ["a photo of blue star"]]


def test_embeddings_of_several_lengths_are_made_together() -> None:
    class Ragged:
        calls = 0

        def encode_prompt(self, prompt: list[str]) -> tuple[torch.Tensor]:
            self.calls += 1
            length = max(map(len, prompt))
            return (torch.stack([torch.tensor([len(one)] * length) for one in prompt]),)

    ragged: Any = Ragged()
    embed_once(ragged)
    assert ragged.encode_prompt(["ab", "abc"])[0].tolist() == [[2, 2, 2], [3, 3, 3]]
    assert ragged.calls == 3
    assert ragged.encode_prompt(["ab", "ab"])[0].tolist() == [[2, 2], [2, 2]]
    assert ragged.calls == 3


def test_no_image_is_painted_black_for_its_safety(folders: dict[str, Path]) -> None:
    with generator(folders["Stable Diffusion 1"]) as backend:
        assert backend._pipeline.safety_checker is None
        assert (pixels(backend).reshape(4, -1).std(1) > 5).all()


@pytest.mark.parametrize("settings", [{"guidance": 1.0}, {"steps": 3}, {"negative_prompt": "sky"}], ids=str)
@pytest.mark.parametrize("name", ["Stable Diffusion 1", "Stable Diffusion 3"])
def test_settings_reach_the_pipeline(folders: dict[str, Path], name: str, settings: dict[str, Any]) -> None:
    with generator(folders[name]) as usual, generator(folders[name], **settings) as other:
        assert (pixels(usual) != pixels(other)).any(axis=(1, 2, 3)).all()


def test_a_flow_has_its_own_scheduler(folders: dict[str, Path]) -> None:
    with pytest.raises(api.UsageError, match="follows a flow"):
        generator(folders["Stable Diffusion 3"], scheduler="ddim").load()


def test_old_names_of_attention_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    """Stable Diffusion 1.4's VAE calls its attention query, key, value and proj_attn."""
    copy = shutil.copytree(folders["Stable Diffusion 1"], tmp_path / "copy")
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    renamed = {}
    for name, tensor in tensors.items():
        for new, former in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file, metadata={"format": "pt"})
    with generator(copy) as backend, generator(folders["Stable Diffusion 1"]) as usual:
        assert (pixels(backend) == pixels(usual)).all()


def test_memory_counts_every_part_that_is_loaded(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        files = [file for file in folder.rglob("*.safetensors") if file.parent.name != "safety_checker"]
        assert generator(folder, dtype="bfloat16").memory() > weight_bytes(files, "bfloat16")


def test_weights_that_are_not_whole_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["FLUX"], tmp_path / "copy")
    file = next((copy / "text_encoder_2").glob("*.safetensors"))
    tensors = load_file(file)
    del tensors["encoder.final_layer_norm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(api.ModelError, match=r"not whole: encoder\.final_layer_norm\.weight is missing"):
        generator(copy).load()


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"_class_name": "NoSuchPipeline"}, "has no pipeline NoSuchPipeline"),
        ({"_class_name": ["mine", "Pipeline"]}, "has no pipeline"),
        ({"_class_name": "StableDiffusionImg2ImgPipeline"}, "does not make images from text alone"),
        ({}, "does not load as a text-to-image pipeline"),
    ],
    ids=str,
)
def test_what_makes_no_images_from_text_is_named(index: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(api.ModelError, match=words):
        generator(tmp_path).load()


def test_classes_of_other_packages_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["Stable Diffusion 1"], tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "unet": ["subprocess", "Popen"]}))
    with pytest.raises(api.ModelError, match="subprocess has no Popen"):
        generator(copy).load()
