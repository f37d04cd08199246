"""The captioner "blip", on a tiny BLIP with random weights, and what every captioner on transformers has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_models
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipProcessor

from dnd import api
from dnd.testing import CaptionerContract, images, runtime
from dnd_blip2 import BlipCaptioner, BlipConfig
from dnd_hf.sizes import weight_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.blip(tmp_path_factory.mktemp("blip"))


def captioner(folder: Path, **settings: Any) -> BlipCaptioner:
    return BlipCaptioner(BlipConfig(model="tiny", **settings), runtime(folders={"tiny": folder}))


class TestBlip(CaptionerContract):
    backend = BlipCaptioner
    config = {"model": "tiny", "max_new_tokens": 6}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _tiny(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "runtime", runtime(folders={"tiny": folder}))

    def items(self) -> list[Image.Image]:
        return images(3)


@pytest.mark.parametrize("prompt", [None, "a photo of"])
def test_the_answer_is_what_transformers_alone_gives(folder: Path, prompt: str | None) -> None:
    model = BlipForConditionalGeneration.from_pretrained(folder)
    processor: Any = BlipProcessor.from_pretrained(folder, backend="pil")
    shown = images(4)
    inputs = processor(images=shown, text=None if prompt is None else [prompt] * 4, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6)
    whole = processor.batch_decode(ids, skip_special_tokens=True)
    with captioner(folder, prompt=prompt, max_new_tokens=6, no_repeat_ngram=0) as backend:
        said = backend.caption(shown)
    assert [f"{prompt or ''} {words}".strip() for words in said] == whole
    assert all(len(words.split()) == 6 for words in said)


def repeats(words: str, n: int) -> bool:
    row = words.split()
    grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    return len(set(grams)) < len(grams)


def biased(folder: Path, word: str, to: Path) -> Path:
    """A copy whose decoder likes a word better than any other."""
    model: Any = BlipForConditionalGeneration.from_pretrained(folder)
    processor: Any = BlipProcessor.from_pretrained(folder, backend="pil")
    model.text_decoder.cls.predictions.bias.data[processor.tokenizer.convert_tokens_to_ids(word)] = 100
    model.save_pretrained(to)
    processor.save_pretrained(to)
    return to


def test_a_caption_does_not_loop(folder: Path, tmp_path: Path) -> None:
    loops = biased(folder, "dog", tmp_path)
    with captioner(loops, max_new_tokens=8, no_repeat_ngram=0) as backend:
        assert backend.caption(images(2)) == ["dog " * 7 + "dog"] * 2
    with captioner(loops, max_new_tokens=8) as backend:
        assert not any(repeats(words, 3) for words in backend.caption(images(2)))
    with captioner(loops, max_new_tokens=8, no_repeat_ngram=0, repetition_penalty=1e6) as backend:
        assert not any(repeats(words, 1) for words in backend.caption(images(2)))


def test_a_caption_has_as_many_tokens_as_asked_for(folder: Path, tmp_path: Path) -> None:
    ends = biased(folder, "[SEP]", tmp_path)
    with captioner(ends) as backend, pytest.raises(api.ItemError, match="empty caption for image 0 of 1"):
        backend.caption(images(1))
    with captioner(ends, min_new_tokens=5) as backend:
        assert len(backend.caption(images(1))[0].split()) == 5


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_weights_can_be_packed(folder: Path, bits: str) -> None:
    with captioner(folder, quantization=bits, max_new_tokens=4) as backend:
        assert all(len(words.split()) == 4 for words in backend.caption(images(2)))


def test_the_memory_holds_the_weights(folder: Path) -> None:
    backend = captioner(folder, dtype="bfloat16")
    weights = weight_bytes(folder.glob("*.safetensors"), "bfloat16")
    model: Any = BlipForConditionalGeneration.from_pretrained(folder, dtype="bfloat16")
    assert weights == sum(parameter.nbytes for parameter in model.parameters())
    assert backend.memory() > weights


def test_another_architecture_is_named() -> None:
    with pytest.raises(api.ModelError, match="is a Blip2ForConditionalGeneration, not a BlipForConditionalGeneration"):
        captioner(runtime().weights("microworld-blip2")).load()


def test_weights_that_are_not_whole_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["vision_model.post_layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(api.ModelError, match=r"not whole: vision_model\.post_layernorm\.weight is missing"):
        captioner(tmp_path).load()
