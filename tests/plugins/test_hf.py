"""What the plugins that run large models share, and how their automatic choices reach run.json and the stage's key."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from weakref import ref

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    Blip2ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from dnd import api
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Entry, Registry
from dnd_blip2 import Blip2Captioner, Blip2Config
from dnd_hf import batches, devices, precision
from dnd_hf.sizes import weight_bytes
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_microworld import world
from dnd_sdxl import SdxlConfig, SdxlGenerator

WEIGHTS = Path(world.__file__).parent / "weights"
GPU = api.Runtime("cuda", WEIGHTS.__truediv__)
BLIP2 = [WEIGHTS / "microworld-blip2" / "model.safetensors"]
LLAMA = [WEIGHTS / "microworld-llama" / "model.safetensors"]


# --- weights against memory ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_take_what_their_headers_say(dtype: str) -> None:
    model = Blip2ForConditionalGeneration.from_pretrained(BLIP2[0].parent, dtype=precision.torch_dtype(dtype))
    real = sum(parameter.nbytes for parameter in model.parameters())
    assert weight_bytes(BLIP2, dtype) == real


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_t5_keeps_some_weights_in_float32_where_float16_is_asked_for(dtype: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": 300, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 2, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**sizes, feed_forward_proj="gated-gelu")).save_pretrained(tmp_path)
    model = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=precision.torch_dtype(dtype))
    real = sum(parameter.nbytes for parameter in model.parameters())
    assert weight_bytes(tmp_path.glob("*.safetensors"), dtype) == real


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
@pytest.mark.parametrize(
    ("files", "model_class"),
    [(LLAMA, AutoModelForCausalLM), (BLIP2, Blip2ForConditionalGeneration)],
    ids=["llama", "blip2"],
)
def test_packed_weights_take_about_what_is_estimated(kind: str, files: list[Path], model_class: Any) -> None:
    packed = precision.packing(kind, "float16", BitsAndBytesConfig)
    model = model_class.from_pretrained(files[0].parent, dtype=torch.float16, quantization_config=packed)
    estimate = weight_bytes(files, "float16", kind)
    scales = sum(m.weight.quant_state.absmax.nbytes for m in model.modules() if hasattr(m, "quant_state"))
    assert estimate == pytest.approx(model.get_memory_footprint() + scales, rel=0.02)
    assert estimate < 0.8 * weight_bytes(files, "float16")


def free(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda device: None if device == "cpu" else count)


def test_the_least_packing_that_fits_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [precision.needed(weight_bytes(BLIP2, "float16", kind)) for kind in ("none", "8bit", "4bit")]
    assert sizes == sorted(sizes, reverse=True)

    def chosen(count: int, setting: str = "auto", device: str = "cuda") -> str:
        free(monkeypatch, count)
        return precision.choose_quantization(setting, lambda: BLIP2, "float16", device)

    assert [chosen(sizes[0]), chosen(sizes[0] - 1), chosen(sizes[1]), chosen(sizes[1] - 1)] == [
        "none",
        "8bit",
        "8bit",
        "4bit",
    ]
    assert chosen(0, device="cpu") == "none"
    assert chosen(0, "none") == "none"
    assert chosen(1 << 50, "4bit") == "4bit"


def test_plugins_say_what_auto_comes_to_before_they_load(monkeypatch: pytest.MonkeyPatch) -> None:
    blip2 = Blip2Captioner(Blip2Config(model="microworld-blip2", dtype="float16"), GPU)
    llama = LlamaSummarizer(LlamaConfig(model="microworld-llama", dtype="float16"), GPU)
    free(monkeypatch, precision.needed(weight_bytes(BLIP2, "float16", "8bit")))
    assert blip2.chosen() == {"dtype": "float16", "quantization": "8bit", "batch_size": 64}
    free(monkeypatch, 0)
    assert blip2.chosen()["quantization"] == "8bit", "kept: after loading there is less free memory"
    assert llama.chosen()["quantization"] == "4bit"
    moved = LlamaSummarizer(LlamaConfig(model="microworld-llama", dtype="float16", offload="cpu"), GPU)
    assert moved.chosen()["quantization"] == "none"


def test_the_generator_moves_and_tiles_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = WEIGHTS / "microworld-sdxl"
    parts = {
        part.name: weight_bytes(part.glob("*.safetensors"), "float16")
        for part in folder.iterdir()
        if list(part.glob("*.safetensors"))
    }

    def chosen(count: int | None, **settings: Any) -> Mapping[str, Any]:
        free(monkeypatch, count)
        return SdxlGenerator(SdxlConfig(model="microworld-sdxl", dtype="float16", **settings), GPU).chosen()

    whole, unet = precision.needed(sum(parts.values())), precision.needed(max(parts.values()))
    assert max(parts.values()) == parts["unet"]
    assert [chosen(count)["offload"] for count in (whole, whole - 1, unet, unet - 1)] == [
        "none",
        "model",
        "model",
        "sequential",
    ]
    assert chosen(whole) == {
        "dtype": "float16",
        "offload": "none",
        "vae_slicing": "on",
        "vae_tiling": "off",
        "batch_size": 16,
    }
    assert chosen(parts["vae"])["vae_tiling"] == "on"
    assert chosen(parts["vae"], vae_tiling="off", vae_slicing="off")["vae_tiling"] == "off"
    assert chosen(whole, width=32768, height=32768)["vae_tiling"] == "on", "larger images take more"


def test_sdxl_expects_more_for_larger_images_and_less_where_parts_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = api.Runtime("cuda", WEIGHTS.__truediv__)

    def expected(free_bytes: int = 1 << 40, **settings: Any) -> int | None:
        free(monkeypatch, free_bytes)
        return SdxlGenerator(SdxlConfig(model="microworld-sdxl", **settings), runtime).memory()

    usual, large = expected(), expected(width=4096, height=4096)
    assert usual is not None
    assert large is not None
    assert usual > 2 << 30, "the least that any work is expected to take"
    assert large > 6 * 32 * 4096 * 4096 * 2, "maps of 32 channels in half precision"
    assert expected(width=4096, height=4096, vae_tiling="on") == pytest.approx(large / 4, rel=0.01)
    assert expected(offload="model") < usual
    missing = api.Runtime("cuda", lambda name: (_ for _ in ()).throw(api.ModelError("not here")))
    with pytest.raises(api.ModelError, match="not here"):
        SdxlGenerator(SdxlConfig(model="microworld-sdxl"), missing).memory()


# --- the batch size -----------------------------------------------------------------------------------


class Memory:
    """A GPU on which a batch takes a fixed part and so much per item."""

    def __init__(self, room: int, fixed: int, each: int, hidden: int = 0) -> None:
        self.room, self.fixed, self.each, self.hidden = room, fixed, each, hidden
        self.tried: list[int] = []

    def takes(self, size: int) -> int:
        return self.fixed + self.each * size + (self.hidden * size if size > 2 else 0)

    def trial(self, size: int) -> None:
        self.tried.append(size)
        if self.takes(size) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    def peak(self, device: str, trial: Any, size: int) -> int:
        trial(size)
        return self.takes(size)


@given(st.integers(0, 200), st.integers(1, 50), st.integers(0, 100), st.integers(0, 8))
def test_the_batch_is_the_largest_power_of_two_that_fits(fixed: int, each: int, more: int, exponent: int) -> None:
    room = int((fixed + 2 * each) / batches.SHARE) + 1 + each * more
    memory, limit = Memory(room, fixed, each), 2**exponent
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "free_memory", lambda device: room)
        patch.setattr(batches, "_peak", memory.peak)
        size = batches.largest_batch(memory.trial, limit, "cuda")
    assert size & (size - 1) == 0
    assert memory.takes(size) <= room
    assert size == limit or memory.takes(2 * size) > batches.SHARE * room


def test_a_batch_that_takes_more_than_was_foreseen_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(1000, 0, 10, hidden=30)
    monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
    monkeypatch.setattr(batches, "_peak", memory.peak)
    monkeypatch.setattr(devices, "release", lambda device: None)
    assert batches.largest_batch(memory.trial, 64, "cuda") == 16
    assert memory.tried == [1, 1, 2, 64, 32, 16]


def test_on_a_cpu_nothing_is_tried() -> None:
    assert batches.largest_batch(lambda size: pytest.fail("tried"), 16, "cpu") == 16


def test_garbage_is_collected_for_a_closed_model_that_is_still_there() -> None:
    gone, there, other = (torch.nn.Linear(1, 1) for _ in range(3))
    there.me, other.me = [there], [other]  # type: ignore[assignment]  # as hooks refer to their models
    refs = [ref(model) for model in (gone, there, other)]
    gc.disable()
    try:
        del gone, there, other
        devices.release("cpu", refs[0])
        assert [model() is None for model in refs] == [True, False, False], "nothing was to be looked for"
        devices.release("cpu", refs[0], refs[1])
    finally:
        gc.enable()
    assert [model() for model in refs] == [None] * 3


@pytest.mark.parametrize("backend", ["blip2", "llama", "sdxl"])
def test_each_plugin_tries_a_batch_of_the_size_asked_for(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(trial: Any, limit: int, device: str) -> int:
        trial(3)
        return 3

    monkeypatch.setattr(batches, "largest_batch", found)
    runtime = api.Runtime("cpu", WEIGHTS.__truediv__)
    made: Any = {
        "blip2": lambda: Blip2Captioner(Blip2Config(model="microworld-blip2"), runtime),
        "llama": lambda: LlamaSummarizer(LlamaConfig(model="microworld-llama"), runtime),
        "sdxl": lambda: SdxlGenerator(SdxlConfig(model="microworld-sdxl", steps=1), runtime),
    }[backend]()
    with made:
        if backend != "sdxl":  # on a CPU it has a group of its own
            assert made.chosen()["batch_size"] == 3
        if backend != "llama":  # which gets units, and makes batches of their chats
            assert made.batch_size == 3


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_memory_that_runs_out_is_told(error: RuntimeError) -> None:
    with (
        pytest.raises(api.DeviceError, match="big-model does not fit into the memory of cpu") as caught,
        devices.device_errors("big-model", "cpu", "take a smaller one"),
    ):
        raise error
    assert caught.value.hint == "take a smaller one"


def test_a_gpu_that_is_gone_is_told_and_a_bug_stays_a_bug() -> None:
    with (
        pytest.raises(api.DeviceError, match="cuda stopped working under big-model: CUDA error: unspecified") as caught,
        devices.device_errors("big-model", "cuda", ""),
    ):
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")
    assert "nvidia-smi" in caught.value.hint
    with pytest.raises(RuntimeError, match="shapes") as kept, devices.device_errors("big-model", "cpu", ""):
        raise RuntimeError("shapes do not match")
    assert not isinstance(kept.value, api.DndError)


def test_quantization_without_bitsandbytes_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    with pytest.raises(api.UsageError, match="needs bitsandbytes"):
        Blip2Captioner(
            Blip2Config(model="microworld-blip2", quantization="8bit"), api.Runtime("cpu", WEIGHTS.__truediv__)
        ).load()


@pytest.mark.parametrize(
    "settings",
    [
        {"offload": "cpu", "quantization": "4bit"},
        {"offload": "cpu", "compile": True},
        {"batch_size": 0},
        {"batch_size": "large"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any]) -> None:
    for config in (Blip2Config, LlamaConfig):
        with pytest.raises(ValidationError):
            config(**settings)


# --- what is chosen reaches the key and run.json -----------------------------------------------------


class Packing(toys.Captioner):
    """Says that "auto" came to what `RESULT` says."""

    RESULT: ClassVar[str] = "none"

    class Config(toys.BatchConfig):
        unkeyed: ClassVar[frozenset[str]] = api.Config.unkeyed | {"place"}
        quantization: str = "auto"
        place: str = "here"

    def chosen(self) -> dict[str, Any]:
        chosen = self.RESULT if self.config.quantization == "auto" else self.config.quantization
        return {"quantization": chosen, "batch_size": self.batch_size}

    def caption(self, images: Any) -> list[str]:
        return [f"a {toys.colour_of(image)} thing" for image in images]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    toys.MOOD.__init__()  # type: ignore[misc]
    return toys.make_photos(tmp_path / "photos")


def captions(photos: Path, **settings: Any) -> dict[str, Any]:
    """The stage's entry in run.json."""
    entries = [e for e in toys.registry().entries if e.kind != "captioner"]
    registry = Registry([*entries, Entry("captioner", "toy", Packing, "toys", "1", "ok")])
    from dnd.config.read import build_run

    table = toys.toy_run(photos).to_dict() | {"captioner": {"backend": "toy", **settings}}
    out = photos.parent / f"run-{len(list(photos.parent.iterdir()))}"
    execute(build_run(table, registry, live_target=True), out, registry=registry, live=(toys.Net(), toys.preprocess))
    found: dict[str, Any] = json.loads((out / "run.json").read_text())["stages"]["captions"]
    return found


def test_what_auto_came_to_is_recorded_and_keyed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = captions(photos)
    assert first["chosen"] == {"quantization": "none", "batch_size": 4}
    assert first["computed"] > 0
    assert captions(photos, quantization="none")["computed"] == 0, "the same answers by another word"
    assert captions(photos, batch_size=2, place="there")["computed"] == 0, "settings that change no answer"
    monkeypatch.setattr(Packing, "RESULT", "8bit")
    other = captions(photos)
    assert other["computed"] == first["computed"], "never reused where auto came to something else"
    assert other["key"] != first["key"]


def test_what_is_keyed_stays_chosen(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading takes memory, and a worker process would look at what is left."""
    monkeypatch.setattr(Packing, "RESULT", "none")  # put back afterwards
    monkeypatch.setattr(Packing, "load", lambda self: setattr(Packing, "RESULT", "4bit"))
    assert captions(photos)["chosen"]["quantization"] == "none"
    assert Packing.RESULT == "4bit"


def test_a_lost_device_ends_the_stage_and_fails_no_item(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Packing, images: list[Image.Image]) -> list[str]:
        raise api.DeviceError("cuda stopped working")

    monkeypatch.setattr(Packing, "caption", gone)
    with pytest.raises(api.DeviceError, match="stopped working"):
        captions(photos)
    monkeypatch.undo()
    assert captions(photos)["failed"] == 0


def test_weights_are_counted_as_they_will_be(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(
        {
            "embed.weight": torch.zeros(100, 64),
            "layer.weight": torch.zeros(64, 64, dtype=torch.float16),
            "ids": torch.zeros(10, dtype=torch.int64),
        },
        file,
    )
    assert weight_bytes([file], None) == 6400 * 4 + 4096 * 2 + 80
    assert weight_bytes([file], "float16") == (6400 + 4096) * 2 + 80
    assert weight_bytes([file], "float32") == (6400 + 4096) * 4 + 80
    assert weight_bytes([file], "float16", "8bit") == 6400 * 2 + 4096 + 80
    assert weight_bytes([file], "float16", "4bit") == 6400 * 2 + 4096 * 0.5625 + 80
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(api.ModelError, match="not a whole safetensors file"):
        weight_bytes([file], None)
