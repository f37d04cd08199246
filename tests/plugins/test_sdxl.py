"""The generator "sdxl", on the microworld's real SDXL."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from benchmarks.training import prompts
from dnd import api
from dnd.config.tables import read_tables
from dnd_diffusers.build import SCHEDULERS
from dnd_microworld import world
from dnd_sdxl import SdxlConfig, SdxlGenerator

FOLDER = Path(world.__file__).parent / "weights" / "microworld-sdxl"
REQUESTS = [api.ImageRequest(concept, seed) for seed in range(3) for concept in ("red", "star", "blue dots", "zebra")]


def generator(folder: Path = FOLDER, **settings: Any) -> SdxlGenerator:
    given = {"model": "microworld-sdxl", "prompt": prompts.TEMPLATE, "steps": 4, "guidance": 3.0, **settings}
    return SdxlGenerator(SdxlConfig.model_validate(given), api.Runtime(device="cpu", weights=lambda name: folder))


def pixels(images: list[Image.Image]) -> npt.NDArray[np.uint8]:
    """(N, H, W, 3)."""
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def loaded() -> Iterator[SdxlGenerator]:
    with generator() as backend:
        yield backend


@pytest.fixture(scope="module")
def drawn(loaded: SdxlGenerator) -> npt.NDArray[np.uint8]:
    return pixels(loaded.generate(REQUESTS))


def test_colours_are_drawn_as_asked() -> None:
    names = list(world.COLOURS)
    with generator(steps=8) as backend:
        made = pixels(backend.generate([api.ImageRequest(f"a plain {n} background", s) for n in names for s in (1, 2)]))
    middle = np.median(made.reshape(len(names), -1, 3), axis=1)  # (8, 3)
    palette = np.array(list(world.COLOURS.values()))
    nearest = np.abs(middle[:, None] - palette).sum(-1).argmin(1)
    assert [names[i] for i in nearest] == names


def test_one_rgb_image_per_request_of_the_models_own_size(loaded: SdxlGenerator) -> None:
    images = loaded.generate(REQUESTS[:5])
    assert [(image.mode, image.size) for image in images] == [("RGB", (32, 32))] * 5
    assert loaded.generate([]) == []


def test_a_request_gives_the_same_image_alone_and_in_any_order(
    loaded: SdxlGenerator, drawn: npt.NDArray[np.uint8]
) -> None:
    for i in (0, 7, 11):
        assert (pixels(loaded.generate([REQUESTS[i]]))[0] == drawn[i]).all()
    again = pixels(loaded.generate([*REQUESTS[::-1], *REQUESTS]))  # 24: more than one group
    assert (again == np.concatenate([drawn[::-1], drawn])).all()


def test_the_batch_size_changes_no_pixel(drawn: npt.NDArray[np.uint8]) -> None:
    with generator(batch_size=5) as backend:
        assert backend.batch_size == 5
        parts = [backend.generate(REQUESTS[at : at + 5]) for at in range(0, len(REQUESTS), 5)]
    assert (pixels([image for part in parts for image in part]) == drawn).all()


def test_seed_and_concept_both_matter(drawn: npt.NDArray[np.uint8]) -> None:
    assert len({image.tobytes() for image in drawn}) == len(REQUESTS)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 0.0},
        {"steps": 3},
        {"negative_prompt": "red"},
        {"prompt": "{concept} on a plain blue background"},
        {"dtype": "bfloat16"},
        {"timestep_spacing": "leading"},
        {"vae_tiling": "on"},
        *({"scheduler": name} for name in SCHEDULERS if name != "dpm++"),
    ],
    ids=str,
)
def test_every_setting_changes_the_image_and_keeps_the_batch_out_of_it(
    settings: dict[str, Any], drawn: npt.NDArray[np.uint8]
) -> None:
    with generator(**settings) as backend:
        made = pixels(backend.generate(REQUESTS))
        assert (made != drawn).any(axis=(1, 2, 3)).all()
        assert (pixels(backend.generate(REQUESTS[5:6]))[0] == made[5]).all()


def test_default_scheduler_is_the_checkpoints_own(drawn: npt.NDArray[np.uint8]) -> None:
    with generator(scheduler="dpm++") as backend:  # what the microworld's checkpoint says of itself
        assert (pixels(backend.generate(REQUESTS)) == drawn).all()


@pytest.mark.parametrize("settings", [{"vae_slicing": "on"}, {"attention_slicing": True}], ids=str)
def test_slices_change_no_pixel(settings: dict[str, Any], drawn: npt.NDArray[np.uint8]) -> None:
    with generator(**settings) as backend:
        unet, vae = backend._pipeline.unet, backend._pipeline.vae
        sliced = [type(one).__name__ == "SlicedAttnProcessor" for one in unet.attn_processors.values()]
        assert (vae.use_slicing, any(sliced)) == ("vae_slicing" in settings, "attention_slicing" in settings)
        assert np.abs(pixels(backend.generate(REQUESTS)).astype(int) - drawn).max() <= 1  # rounding


def test_parts_that_move_between_stores_change_no_pixel(drawn: npt.NDArray[np.uint8]) -> None:
    from dnd_diffusers.offload import Placement, place

    with generator() as backend:
        pipeline = backend._pipeline
        place(pipeline, Placement("model", slicing=True, tiling=False, attention=False), "cpu")
        assert {type(hook).__name__ for hook in pipeline._all_hooks} == {"UserCpuOffloadHook"}
        assert (pixels(backend.generate(REQUESTS)) == drawn).all()
        held = weakref.ref(pipeline.unet)
        del pipeline
    assert held() is None


def test_a_few_steps_without_guidance_as_lightning_is_drawn() -> None:
    """Euler over trailing timesteps from a lone UNet file: what SDXL-Lightning's card asks for, and diffusers does."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    few = {"steps": 2, "guidance": 0.0, "scheduler": "euler", "timestep_spacing": "trailing", "unet": "lightning"}
    with TemporaryDirectory() as folder:
        lone = Path(folder)
        shutil.copy(
            FOLDER / "unet" / "diffusion_pytorch_model.safetensors", lone / "sdxl_lightning_2step_unet.safetensors"
        )
        folders = {"microworld-sdxl": FOLDER, "lightning": lone}
        config = SdxlConfig(model="microworld-sdxl", prompt=prompts.TEMPLATE, **few)  # type: ignore[arg-type]
        with SdxlGenerator(config, api.Runtime("cpu", folders.__getitem__)) as backend:
            assert backend._pipeline.scheduler.config.timestep_spacing == "trailing"
            made = pixels(backend.generate(REQUESTS[:2]))
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(FOLDER, dtype=torch.float32)  # type: ignore[no-untyped-call]
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")  # type: ignore[no-untyped-call]
    pipeline.set_progress_bar_config(disable=True)
    alone = pipeline(
        prompt=[f"a picture of {request.concept}" for request in REQUESTS[:2]],
        num_inference_steps=2,
        guidance_scale=0,
        generator=[torch.Generator("cpu").manual_seed(request.seed) for request in REQUESTS[:2]],
    ).images
    assert np.abs(pixels(alone).astype(int) - made).max() <= 2  # another batch shape


def test_a_unet_of_another_shape_is_refused(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "unet.safetensors")
    folders = {"microworld-sdxl": FOLDER, "mine": tmp_path}
    config = SdxlConfig(model="microworld-sdxl", prompt=prompts.TEMPLATE, unet="mine")
    with pytest.raises(api.ModelError, match=r"unet.safetensors is no UNet of the architecture"):
        SdxlGenerator(config, api.Runtime("cpu", folders.__getitem__)).load()


def test_float16_decodes_in_float32_where_the_autoencoder_would_overflow(tmp_path: Path) -> None:
    """SDXL's own VAE says `force_upcast`; its numbers pass float16's largest, here by a decoder made to do so."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(FOLDER / "vae")  # type: ignore[no-untyped-call]
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(1e5).clamp_(-6e4, 6e4)  # the group norms after it bring the sums back
    folders = {"microworld-sdxl": FOLDER, "mine": tmp_path}
    for upcast in (True, False):
        vae.register_to_config(force_upcast=upcast)
        vae.save_pretrained(tmp_path)
        config = SdxlConfig(
            model="microworld-sdxl", prompt=prompts.TEMPLATE, vae="mine", steps=1, guidance=0, dtype="float16"
        )
        with SdxlGenerator(config, api.Runtime("cpu", folders.__getitem__)) as backend:
            if upcast:
                assert backend.generate(REQUESTS[:1])[0].size == (32, 32)
            else:
                with pytest.raises(api.ItemError, match="no finite pixels") as caught:
                    backend.generate(REQUESTS[:1])
                assert "sdxl-vae-fp16-fix" in caught.value.hint


def test_another_pipeline_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(api.ModelError, match="is a StableDiffusionPipeline, not a StableDiffusionXLPipeline"):
        generator(tmp_path).load()


@pytest.mark.skipif(torch.cuda.is_available(), reason="it works on a GPU")
def test_a_packed_unet_wants_a_gpu() -> None:
    with pytest.raises(api.UsageError, match="on a GPU only"):
        generator(quantization="4bit").load()


def test_width_and_height() -> None:
    with generator(width=48, height=24) as backend:
        assert [image.size for image in backend.generate(REQUESTS[:2])] == [(48, 24)] * 2


def test_another_autoencoder_takes_the_checkpoints_place(drawn: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(FOLDER / "vae")  # type: ignore[no-untyped-call]
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_()
        vae.decoder.conv_out.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    vae.save_pretrained(tmp_path)
    folders = {"microworld-sdxl": FOLDER, "mine": tmp_path}
    config = SdxlConfig(model="microworld-sdxl", prompt=prompts.TEMPLATE, vae="mine", steps=2)
    with SdxlGenerator(config, api.Runtime("cpu", folders.__getitem__)) as backend:
        (image,) = backend.generate(REQUESTS[:1])
    assert np.asarray(image).reshape(-1, 3).tolist() == [[255, 0, 128]] * 1024


@pytest.mark.parametrize("plain", ["none", "vae"])
def test_a_folder_with_fp16_files_only_loads(plain: str, drawn: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    for file in [file for file in folder.rglob("*.safetensors") if file.parent.name != plain]:
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))
    with generator(folder) as backend:
        assert (pixels(backend.generate(REQUESTS)) == drawn).all()


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch, drawn: npt.NDArray[np.uint8]) -> None:
    sizes = []
    with generator() as backend:
        draw = backend._draw

        def small(requests: list[api.ImageRequest], **rest: Any) -> list[Image.Image]:
            sizes.append(len(requests))
            if len(requests) > 3:
                raise RuntimeError("CUDA out of memory.")
            return draw(requests)

        monkeypatch.setattr(backend, "_draw", small)
        backend._batches.size = 12
        made = pixels(backend.generate(REQUESTS))
        assert sizes[-4:] == [3, 3, 3, 3]
        assert sizes[0] == 12
        assert np.abs(made.astype(int) - drawn).max() <= 2  # another batch shape: up to rounding
        monkeypatch.setattr(backend, "_draw", lambda requests: small([*requests, *requests, *requests, *requests]))
        with pytest.raises(api.DeviceError, match="does not fit into the memory"):
            backend.generate(REQUESTS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_begins_with_the_same_noise(dtype: str) -> None:
    """torch draws other numbers from a seed in another dtype; the images would show something else."""
    made = {}
    for one in ("float32", dtype):
        with generator(dtype=one, steps=4) as backend:
            made[one] = pixels(backend.generate(REQUESTS)).astype(float)
    assert np.abs(made[dtype] - made["float32"]).mean() < 8


def test_numbers_that_overflow_are_an_item_error() -> None:
    with generator() as backend:
        with torch.no_grad():
            backend._pipeline.vae.decoder.conv_out.bias.fill_(float("nan"))
        with pytest.raises(api.ItemError, match="no finite pixels for 'red'"):
            backend.generate(REQUESTS[:1])


def test_close_gives_the_memory_back_and_may_be_repeated() -> None:
    backend = generator()
    backend.close()
    backend.load()
    backend.generate(REQUESTS[:1])
    held = weakref.ref(backend._pipeline.unet)
    backend.close()
    backend.close()
    gc.collect()
    assert held() is None
    with pytest.raises(RuntimeError, match="before load"):
        backend.generate(REQUESTS[:1])


def test_a_folder_that_is_no_sdxl_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(api.ModelError, match=r"microworld-sdxl.*does not load as an SDXL"):
        generator(tmp_path).load()


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match=r"needs \{concept\}"):
        SdxlConfig(prompt="a picture")
    with pytest.raises(ValidationError):
        SdxlConfig(width=30)
    with pytest.raises(ValidationError):
        SdxlConfig.model_validate({"step": 3})


def test_the_default_prompt_is_for_photographs_and_the_microworld_keeps_its_own() -> None:
    assert SdxlConfig().prompt == "a photo of {concept}"
    for name in ("default", "landcover"):
        assert read_tables(name)["generator"]["prompt"] == prompts.TEMPLATE


def test_phrases_about_a_scene_are_true_of_it() -> None:
    rng = np.random.default_rng(0)
    for scene in world.draw_scenes("train", 0, 300):
        phrase = prompts.phrase_about(scene, rng)
        known = set(phrase.split()) & {*world.COLOURS, *world.SHAPES, "dots", "checkerboard", "grid"}
        shown = {word for concept in world.concepts(scene) for word in concept.split()}
        assert known <= shown, (phrase, scene)


def test_importing_the_plugin_is_cheap() -> None:
    code = "import sys, dnd_sdxl; print(sorted({'torch', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
