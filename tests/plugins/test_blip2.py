"""The captioner "blip2", on the microworld's real BLIP-2 and on a tiny random one with a T5."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import Blip2Config as ModelConfig
from transformers import Blip2ForConditionalGeneration, Blip2Processor, T5Config

import dnd_blip2
from dnd import api
from dnd_blip2 import Blip2Captioner, Blip2Config, BlipCaptioner
from dnd_hf import loading
from dnd_microworld import world

FOLDER = Path(world.__file__).parent / "weights" / "microworld-blip2"


def captioner(folder: Path = FOLDER, **settings: Any) -> Blip2Captioner:
    runtime = api.Runtime(device="cpu", weights=lambda name: folder)
    return Blip2Captioner(Blip2Config(model="microworld-blip2", **settings), runtime)


@pytest.fixture(scope="module")
def scenes() -> list[world.Scene]:
    return world.draw_scenes("validation", 5000, 24)


@pytest.fixture(scope="module")
def images(scenes: list[world.Scene]) -> list[Image.Image]:
    return [Image.fromarray(image) for image in world.render(scenes).images]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Blip2Captioner]:
    with captioner() as backend:
        yield backend


def test_captions_say_what_the_pictures_show(
    loaded: Blip2Captioner, scenes: list[world.Scene], images: list[Image.Image]
) -> None:
    said = loaded.caption(images)
    truth = [world.caption(scene) for scene in scenes]
    grounds = [world.background_phrase(scene.colour, scene.texture) for scene in scenes]
    assert sum(words.endswith(ground) for words, ground in zip(said, grounds, strict=True)) >= 22
    assert sum(words == true for words, true in zip(said, truth, strict=True)) >= 18


def test_a_caption_does_not_depend_on_the_batch(loaded: Blip2Captioner, images: list[Image.Image]) -> None:
    together = loaded.caption(images)
    assert [loaded.caption([image])[0] for image in images[:8]] == together[:8]
    assert loaded.caption(images[::-1]) == together[::-1]
    with captioner(batch_size=5) as other:
        assert other.batch_size == 5
        assert other.caption(images) == together
    assert loaded.caption([]) == []


def test_the_answer_is_what_transformers_alone_gives(loaded: Blip2Captioner, images: list[Image.Image]) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(FOLDER, dtype=torch.float32)
    processor = Blip2Processor.from_pretrained(FOLDER)
    ids = model.generate(**processor(images=images, return_tensors="pt"), max_new_tokens=32)
    assert loaded.caption(images) == processor.batch_decode(ids, skip_special_tokens=True)


def test_pictures_of_other_sizes_are_resized(loaded: Blip2Captioner, images: list[Image.Image]) -> None:
    large = [image.resize((256, 256), Image.Resampling.NEAREST) for image in images]
    pairs = zip(loaded.caption(large), loaded.caption(images), strict=True)
    assert sum(a == b for a, b in pairs) >= 20


def test_a_caption_goes_on_from_the_prompt(loaded: Blip2Captioner, images: list[Image.Image]) -> None:
    whole = [words for words in loaded.caption(images[:8])]
    first = "a" if whole[0].startswith("a ") else "an"
    chosen = [i for i, words in enumerate(whole) if words.split()[0] == first]
    with captioner(prompt=first) as prompted:
        rest = prompted.caption([images[i] for i in chosen])
    assert [f"{first} {words}" for words in rest] == [whole[i] for i in chosen]


def test_settings_reach_the_model(loaded: Blip2Captioner, images: list[Image.Image]) -> None:
    with captioner(max_new_tokens=3) as short:
        assert short.caption(images[:4]) == [" ".join(words.split()[:3]) for words in loaded.caption(images[:4])]
    with captioner(num_beams=3) as beams:
        pairs = zip(beams.caption(images), loaded.caption(images), strict=True)
        assert sum(a == b for a, b in pairs) >= 20


def test_a_batch_that_does_not_fit_shrinks(images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    with captioner(batch_size=16) as backend:
        expected = backend.caption(images)
        real, sizes = backend._model.generate, list[int]()

        def generate(pixel_values: torch.Tensor, **rest: Any) -> Any:
            sizes.append(len(pixel_values))
            if len(pixel_values) > 6:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(pixel_values, **rest)

        monkeypatch.setattr(backend._model, "generate", generate)
        assert backend.caption(images) == expected
        fits = sizes[-1]
        sizes.clear()
        assert backend.caption(images) == expected
        assert fits == 4
        assert set(sizes) == {fits}, "the second call starts from the size that fits"


def test_an_empty_caption_is_an_item_error(images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    with captioner() as backend:
        real = backend._model.generate

        def generate(**inputs: Any) -> Any:
            ids = real(**inputs)
            ids[1, backend._model.config.num_query_tokens + 1 :] = 2
            return ids

        monkeypatch.setattr(backend._model, "generate", generate)
        with pytest.raises(api.ItemError, match=r"empty caption for image 1 of 3"):
            backend.caption(images[:3])


def test_close_frees_the_model_and_is_safe_twice(images: list[Image.Image]) -> None:
    backend = captioner()
    backend.close()
    backend.load()
    held = weakref.ref(backend._model)
    backend.close()
    assert held() is None
    backend.close()
    with backend:
        assert backend.caption(images[:1])


def test_a_folder_without_a_blip2_is_a_model_error(tmp_path: Path) -> None:
    backend = captioner(tmp_path)
    with pytest.raises(api.ModelError, match="microworld-blip2"):
        backend.load()
    backend.close()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    for file in FOLDER.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(Blip2ForConditionalGeneration.from_pretrained(FOLDER).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(api.ModelError):
        captioner(tmp_path).load()


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"dtype": "int8"}, {"batch_size": 0}, {"quantization": "2bit"}]
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Blip2Config(**settings)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized_weights_give_the_same_answers(bits: str, loaded: Blip2Captioner, images: list[Image.Image]) -> None:
    import bitsandbytes as bnb

    with captioner(quantization=bits) as packed:
        kind = bnb.nn.Linear8bitLt if bits == "8bit" else bnb.nn.Linear4bit
        assert any(isinstance(module, kind) for module in packed._model.modules())
        said = packed.caption(images)
        assert sum(a == b for a, b in zip(said, loaded.caption(images), strict=True)) >= 20
        assert [packed.caption([image])[0] for image in images[:4]] == said[:4]
        assert packed.chosen() == {"dtype": "float32", "quantization": bits, "batch_size": 16}


def test_layers_that_do_not_fit_visit_the_device(
    loaded: Blip2Captioner, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU with offload "cpu", one store further down: from the disk to the CPU."""
    room = {"device_map": "auto", "max_memory": {"cpu": 3_500_000}, "offload_folder": tmp_path}
    monkeypatch.setattr(loading, "spread", lambda device: room)
    with captioner(offload="cpu") as backend:
        assert {parameter.device.type for parameter in backend._model.parameters()} == {"cpu", "meta"}
        assert backend.caption(images) == loaded.caption(images)
        assert backend.caption(images[:1]) == loaded.caption(images[:1])
        held = weakref.ref(backend._model)
    assert held() is None


def test_one_image_that_does_not_fit_is_a_device_error(
    images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    with captioner() as backend:

        def generate(**inputs: Any) -> Any:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(backend._model, "generate", generate)
        with pytest.raises(api.DeviceError, match="microworld-blip2 does not fit into the memory of cpu") as caught:
            backend.caption(images[:5])
    assert "quantization" in caught.value.hint


def test_another_architecture_is_named() -> None:
    backend = captioner(FOLDER.parent / "microworld-llama")
    with pytest.raises(api.ModelError, match="is a LlamaForCausalLM, not a Blip2ForConditionalGeneration"):
        backend.load()


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["query_tokens"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(api.ModelError, match="not whole: query_tokens is missing"):
        captioner(tmp_path).load()


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The microworld's vision tower and Q-Former before a random T5 that has no bos token."""
    processor = Blip2Processor.from_pretrained(FOLDER)
    source: Any = ModelConfig.from_pretrained(FOLDER)
    torch.manual_seed(0)
    text = T5Config(
        vocab_size=len(processor.tokenizer),
        d_model=64,
        d_kv=32,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=2,
        initializer_factor=3.0,
    )
    config = ModelConfig(
        vision_config=source.vision_config.to_dict(),
        qformer_config=source.qformer_config.to_dict(),
        text_config=text.to_dict() | {"decoder_start_token_id": 0},
        num_query_tokens=source.num_query_tokens,
        image_token_index=source.image_token_index,
    )
    folder = tmp_path_factory.mktemp("t5")
    model = Blip2ForConditionalGeneration(config)
    special = torch.tensor([*range(4), source.image_token_index])
    model.get_input_embeddings().weight.data[special] = 0  # also the words' output layer: never the best choice
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", [None, "a red"])
def test_an_encoder_decoder_language_model(t5_folder: Path, images: list[Image.Image], prompt: str | None) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(t5_folder)
    processor = Blip2Processor.from_pretrained(t5_folder)
    inputs = processor(images=images[:6], text=[prompt or ""] * 6, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = [" ".join(w.split()) for w in processor.batch_decode(ids, skip_special_tokens=True)]
    with captioner(t5_folder, prompt=prompt, max_new_tokens=6, no_repeat_ngram=0) as backend:
        said = backend.caption(images[:6])
    assert said == expected
    assert all(len(words.split()) == 6 for words in said)


def test_the_plugin_offers_the_captioner_and_imports_nothing_heavy() -> None:
    assert dnd_blip2.register_captioners() == [BlipCaptioner, Blip2Captioner]
    code = "import sys, dnd_blip2; print({'torch', 'transformers', 'accelerate', 'PIL'} & set(sys.modules))"
    paths = [str(Path(dnd_blip2.__file__).parents[1]), str(Path(api.__file__).parents[1])]
    script = f"import sys; sys.path[:0] = {paths!r}; {code}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


# --- the probability of a caption --------------------------------------------------------------------


def test_the_probability_of_a_caption_is_that_of_its_generation(
    loaded: Blip2Captioner, images: list[Image.Image]
) -> None:
    shown = images[:4]
    captions = loaded.caption(shown)
    table = torch.tensor(loaded.log_probabilities([(image, captions) for image in shown]))
    inputs = loaded._processor(images=shown[:1], return_tensors="pt")
    made = loaded._model.generate(**inputs, max_new_tokens=32, output_scores=True, return_dict_in_generate=True)
    tokens = made.sequences[0, -len(made.scores) :]
    scores = [float(step[0].log_softmax(-1)[token]) for step, token in zip(made.scores, tokens, strict=True)]
    assert table[0, 0] == pytest.approx(sum(scores), abs=1e-3)
    assert table.argmax(1).tolist() == [0, 1, 2, 3]
    assert loaded.log_probabilities([(shown[1], captions[2:3])])[0][0] == pytest.approx(float(table[1, 2]), abs=1e-3)


@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_the_probability_of_a_caption_by_an_encoder_decoder(
    t5_folder: Path, images: list[Image.Image], prompt: str | None
) -> None:
    texts = ["a red star", "dots"]
    with captioner(t5_folder, prompt=prompt) as backend:
        found = backend.log_probabilities([(images[0], texts)])[0]
        for text, value in zip(texts, found, strict=True):
            inputs = backend._processor(images=images[:1], text=[prompt or ""], return_tensors="pt")
            words = backend._processor.tokenizer(f" {text}" if prompt else text, add_special_tokens=False).input_ids
            labels = torch.tensor([[*words, backend._model.generation_config.eos_token_id]])
            with torch.inference_mode():
                mean = float(backend._model(**inputs, labels=labels).loss)
            assert value == pytest.approx(-mean * labels.shape[1], abs=1e-3)
