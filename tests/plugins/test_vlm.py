"""The captioner "vlm", on tiny chat models of several architectures with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import needs
import pytest
import tiny_models
from PIL import Image

from dnd import api
from dnd.testing import CaptionerContract, images, runtime
from dnd_hf.sizes import weight_bytes
from dnd_vlm import VlmCaptioner, VlmConfig
from dnd_vlm.question import shrunk

PROMPT = "what is on this table"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlms")
    return {name: build(root / name) for name, build in tiny_models.VLMS.items()}


def captioner(folder: Path, **settings: Any) -> VlmCaptioner:
    given = {"model": "tiny", "prompt": PROMPT, "max_new_tokens": 5, **settings}
    return VlmCaptioner(VlmConfig(**given), runtime(folders={"tiny": folder}))


class TestVlm(CaptionerContract):
    backend = VlmCaptioner
    config = {"model": "tiny", "prompt": PROMPT, "max_new_tokens": 4}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _tiny(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "runtime", runtime(folders={"tiny": folders["Qwen2.5-VL"]}))

    def items(self) -> list[Image.Image]:
        return images(3)


ARCHITECTURES = [pytest.param(n, marks=needs.num2words if n == "SmolVLM" else ()) for n in tiny_models.VLMS]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_captions_by_what_it_sees_and_is_asked(folders: dict[str, Path], name: str) -> None:
    shown = images(4)
    with captioner(folders[name]) as backend:
        said = backend.caption(shown)
        assert all(set(words.split()) <= set(tiny_models.WORDS) and len(words.split()) == 5 for words in said)
        assert len(set(said)) == 4, "the images matter"
        assert [backend.caption([image])[0] for image in shown] == said, "and no other image of the batch"
    with captioner(folders[name], prompt="a red dog") as backend:
        assert all(one != other for one, other in zip(backend.caption(shown), said, strict=True))


def test_a_package_that_a_processor_needs_is_named_before_the_run(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnd_vlm.captioner.find_spec", lambda name: None)
    (fault,) = captioner(folders["SmolVLM"]).check()
    assert isinstance(fault, api.UsageError)
    assert (str(fault), fault.hint) == ("tiny needs the package num2words", "Run: pip install num2words")
    assert not captioner(folders["Qwen2.5-VL"]).check()
    monkeypatch.setattr("dnd_vlm.captioner.find_spec", lambda name: True)
    assert not captioner(folders["SmolVLM"]).check()


def test_the_answer_is_what_transformers_alone_gives(folders: dict[str, Path]) -> None:
    """Gemma 3's processor reads no videos, so that it loads without this plugin's help."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, shown = folders["Gemma 3"], images(3)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    alone = []
    for image in shown:
        asked = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": PROMPT}]}]
        inputs = processor.apply_chat_template(
            asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        alone.append(processor.tokenizer.decode(ids[0], skip_special_tokens=True))
    with captioner(folder) as backend:
        assert backend.caption(shown) == alone


@pytest.mark.parametrize(
    "settings", [{"dtype": "bfloat16"}, {"quantization": "8bit"}, {"quantization": "4bit"}], ids=str
)
def test_number_formats(folders: dict[str, Path], settings: dict[str, Any]) -> None:
    with captioner(folders["Qwen2.5-VL"], **settings) as backend:
        assert all(len(words.split()) == 5 for words in backend.caption(images(2)))
        assert backend.chosen() == {"dtype": "float32", "quantization": "none", "batch_size": 16, **settings}


def test_the_checkpoints_own_sampling_settings_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["Qwen3-VL"], tmp_path / "copy")
    file = copy / "generation_config.json"
    mine = {"do_sample": True, "temperature": 9.0, "top_k": 20, "repetition_penalty": 1e6}
    file.write_text(json.dumps({**json.loads(file.read_text()), **mine}))
    with captioner(copy) as backend, captioner(folders["Qwen3-VL"]) as usual:
        assert backend.caption(images(3)) == usual.caption(images(3))


def test_large_images_are_shrunk_first() -> None:
    image = Image.new("RGB", (300, 100))
    assert shrunk(image, 60).size == (60, 20)
    assert shrunk(image, 300) is image
    assert shrunk(Image.new("RGB", (2000, 2)), 100).size == (100, 1)


def test_memory_by_the_weights(folders: dict[str, Path]) -> None:
    from transformers import AutoModelForImageTextToText

    for folder in folders.values():
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="bfloat16")
        weights = weight_bytes(folder.glob("*.safetensors"), "bfloat16")
        assert weights == sum(parameter.nbytes for parameter in model.parameters())
        assert captioner(folder, dtype="bfloat16").memory() > weights


def test_a_model_without_a_chat_template_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["Gemma 3"], tmp_path / "copy")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(api.ModelError, match="no chat template"):
        captioner(copy).load()


def test_weights_that_are_not_whole_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folders["Qwen2.5-VL"], tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    gone = next(name for name in tensors if "merger" in name)
    del tensors[gone]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(api.ModelError, match="not whole"):
        captioner(copy).load()


def test_a_language_model_alone_is_refused() -> None:
    with pytest.raises(api.ModelError, match="does not load as an image-text-to-text model"):
        captioner(runtime().weights("microworld-llama")).load()
