"""The bundled backends on a CUDA device, with the microworld's checkpoints: the same answers as on a CPU, in every
number format, and no memory left behind. `pytest -m gpu` runs these alone; without a GPU they are skipped."""

from __future__ import annotations

import csv
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
import torch
from PIL import Image

from dnd import api
from dnd.runtime.pool import WorkerPool
from dnd.testing import evidence, image_requests, runtime
from dnd_blip2 import Blip2Captioner, Blip2Config
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.conversation import Ask
from dnd_llama.prompts import simplify_messages
from dnd_microworld import world
from dnd_scorers import ClipRank
from dnd_sdxl import SdxlConfig, SdxlGenerator

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, needs.cuda]

EIGHT_BITS = {"quantization": "8bit"}
FOUR_BITS = {"quantization": "4bit"}

SCENES = world.draw_scenes("validation", 5000, 24)
PICTURES = [Image.fromarray(image) for image in world.render(SCENES).images]
ASKS = [Ask(simplify_messages(world.caption(scene)), 0, 0.0) for scene in SCENES]
REQUESTS = image_requests(("red", "star", "blue dots", "a plain green background"))


def blip2(device: str, **settings: Any) -> Blip2Captioner:
    return Blip2Captioner(Blip2Config(model="microworld-blip2", **settings), runtime(device))


def llama(device: str, **settings: Any) -> LlamaSummarizer:
    return LlamaSummarizer(LlamaConfig(model="microworld-llama", **settings), runtime(device))


def sdxl(device: str, **settings: Any) -> SdxlGenerator:
    given = {"model": "microworld-sdxl", "prompt": "a picture of {concept}", "steps": 4, "guidance": 3.0, **settings}
    return SdxlGenerator(SdxlConfig.model_validate(given), runtime(device))


def clip_rank(device: str) -> ClipRank:
    return ClipRank(ClipRank.Config(model="microworld-clip"), runtime(device))


WORK: list[tuple[Callable[..., Any], Callable[[Any], object]]] = [
    (blip2, lambda backend: backend.caption(PICTURES)),
    (llama, lambda backend: backend.answer(ASKS)),
    (sdxl, lambda backend: backend.generate(REQUESTS)),
    (clip_rank, lambda backend: backend.score([evidence()])),
]
IDS = ["blip2", "llama", "sdxl"]


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """Of a CPU, as the answers of the others below."""
    with blip2("cpu") as backend:
        return backend.caption(PICTURES)


@pytest.fixture(scope="module")
def answers() -> list[str]:
    with llama("cpu") as backend:
        return backend.answer(ASKS)


@pytest.fixture(scope="module")
def drawn() -> np.ndarray[Any, Any]:
    with sdxl("cpu") as backend:
        return pixels(backend.generate(REQUESTS))


def pixels(images: Sequence[Image.Image]) -> np.ndarray[Any, Any]:
    """(N, H, W, 3)"""
    return np.stack([np.asarray(image) for image in images]).astype(float)


def same(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of equal answers."""
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def taken() -> int:
    """Bytes that tensors have on the device."""
    gc.collect()
    return torch.cuda.memory_allocated(DEVICE) if torch.cuda.is_available() else 0


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"dtype": "float32", "quantization": "none"}, 0.9),
        ({"dtype": "float16", "quantization": "none"}, 0.8),
        ({}, 0.75),
        pytest.param(EIGHT_BITS, 0.6, marks=needs.bitsandbytes),
        pytest.param(FOUR_BITS, 0.5, marks=needs.bitsandbytes),
        ({"offload": "cpu"}, 0.75),
    ],
    ids=str,
)
def test_captions_are_those_of_the_cpu(settings: dict[str, Any], least: float, captions: list[str]) -> None:
    with blip2(DEVICE, **settings) as backend:
        said = backend.caption(PICTURES)
        assert same(said, captions) >= least
        assert backend.caption(PICTURES[::-1]) == said[::-1], "batches are filled up: no answer hangs on the others"
        assert backend.caption(PICTURES[:1]) == said[:1]


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"dtype": "float32", "quantization": "none"}, 0.9),
        ({"dtype": "float16", "quantization": "none"}, 0.8),
        ({}, 0.7),
        pytest.param(EIGHT_BITS, 0.6, marks=needs.bitsandbytes),
        pytest.param(FOUR_BITS, 0.4, marks=needs.bitsandbytes),
        ({"offload": "cpu"}, 0.7),
    ],
    ids=str,
)
def test_rewritten_captions_are_those_of_the_cpu(settings: dict[str, Any], least: float, answers: list[str]) -> None:
    with llama(DEVICE, **settings) as backend:
        assert same(backend.answer(ASKS), answers) >= least


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({"dtype": "float32"}, 2.0),
        ({}, 8.0),
        ({"dtype": "bfloat16"}, 16.0),
        ({"dtype": "float32", "offload": "model"}, 2.0),
        ({"dtype": "float32", "offload": "sequential"}, 2.0),
        pytest.param(EIGHT_BITS, 12.0, marks=needs.bitsandbytes),
    ],
    ids=str,
)
def test_images_are_those_of_the_cpu(settings: dict[str, Any], most: float, drawn: np.ndarray[Any, Any]) -> None:
    """`most`: mean difference of a colour channel, of 255; images of other seeds differ by far more."""
    with sdxl(DEVICE, **settings) as backend:
        made = pixels(backend.generate(REQUESTS))
    assert np.abs(made - drawn).mean() <= most
    assert np.abs(drawn[::2] - drawn[1::2]).mean() > 30, "two seeds of each concept"


@needs.bitsandbytes
def test_a_width_that_4_bits_cannot_pack_is_named() -> None:
    """The microworld's UNet has one; SDXL's has none."""
    with pytest.raises(api.ModelError, match=r"4 bits: add_embedding\.linear_1 has 112 inputs, no multiple of 64"):
        sdxl(DEVICE, quantization="4bit").load()


def test_scores_are_those_of_the_cpu() -> None:
    scores = []
    for device in ("cpu", DEVICE):
        with clip_rank(device) as backend:
            scores.append(backend.score([evidence()])[0])
    assert np.allclose(scores[0], scores[1], atol=0.02)


@pytest.mark.parametrize(("make", "work", "limit"), [(*WORK[0], 64), (*WORK[1], 128), (*WORK[2], 16)], ids=IDS)
def test_the_batch_is_found_and_memory_given_back(
    make: Callable[..., Any], work: Callable[[Any], object], limit: int
) -> None:
    """The second time round: what libraries take at their first use is theirs, not the backend's."""
    left = []
    for _ in range(2):
        with make(DEVICE) as backend:
            while_loaded = taken()
            size = backend.chosen()["batch_size"]
            work(backend)
        left.append(taken())
    assert left[1] == left[0]
    assert while_loaded > left[0] + 500_000, "the weights were there"
    assert 1 < size <= limit
    assert size & (size - 1) == 0, "a power of two"


def test_a_batch_that_does_not_fit_is_halved_and_the_images_stay(drawn: np.ndarray[Any, Any]) -> None:
    """torch is allowed less memory than the whole batch takes."""
    with sdxl(DEVICE, dtype="float32", batch_size=64) as backend:
        backend.generate(REQUESTS)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(DEVICE)
        torch.cuda.reset_peak_memory_stats(DEVICE)
        backend.generate(REQUESTS)
        at_work = torch.cuda.max_memory_reserved(DEVICE) - before
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(DEVICE).total_memory
        torch.cuda.set_per_process_memory_fraction((before + 0.7 * at_work) / total)
        try:
            made = pixels(backend.generate(REQUESTS))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert 8 <= backend.chosen()["batch_size"] < 64
    assert np.abs(made - drawn).mean() <= 2.0


def test_stages_in_one_process_give_their_memory_back_to_others() -> None:
    """What torch keeps for itself is no other process's to take, and vLLM's server is one."""
    kept = []
    for _ in range(2):
        for make, work in WORK:
            with make(DEVICE) as backend:
                work(backend)
                at_work = torch.cuda.memory_reserved(DEVICE)
            gc.collect()
            assert torch.cuda.memory_reserved(DEVICE) < at_work
        kept.append(torch.cuda.memory_reserved(DEVICE))
    assert kept[1] == kept[0]
    assert kept[0] <= 64 << 20


def test_two_workers_on_one_device_caption_as_one(captions: list[str]) -> None:
    settings = {"dtype": "float32", "quantization": "none", "batch_size": 8}
    order = api.Runtime(DEVICE, runtime().weights, (f"{DEVICE}:0", f"{DEVICE}:0"))
    backend = Blip2Captioner(Blip2Config(model="microworld-blip2", **settings), order)  # type: ignore[arg-type]
    with WorkerPool(backend, order.devices) as both:
        assert same(both.caption(PICTURES), captions) >= 0.9


def test_a_run_labels_planted_units(tmp_path: Path) -> None:
    """The demo's first two units, everything on the GPU; run.json says what "auto" came to."""
    little = ("probing.count=500", "images.n=4")
    command = [sys.executable, "-m", "dnd", "run", "--device", DEVICE, "--units", "3,4", "--out", "labels"]
    command += [word for one in little for word in ("--set", one)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "labels" / "labels.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["purple", "dots"]
    stages = json.loads((tmp_path / "labels" / "run.json").read_text("utf-8"))["stages"]
    assert stages["captions"]["chosen"]["dtype"] in ("bfloat16", "float16")
    assert stages["captions"]["chosen"]["batch_size"] > 1
