"""The summarizer `vllm` and the captioner `vllm-vlm` with a real vLLM; skipped unless $DND_VLLM_PYTHON names a
Python that has one.

docs/gpus.md tells how to make one that needs no GPU. The server takes a minute to start.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import needs
import psutil
import pytest
import tiny_models

from dnd.api import Runtime, SummaryRequest
from dnd.testing import images
from dnd_llama import LlamaConfig, LlamaSummarizer
from dnd_llama.conversation import Ask
from dnd_llama.prompts import concept_messages, simplify_messages
from dnd_vllm import VllmCaptioner, VllmCaptionerConfig, VllmSummarizer
from dnd_vllm.config import VllmConfig
from dnd_vllm.environment import server_environment
from dnd_vllm.interpreter import MODULE, find
from dnd_vllm.launch import Plan, command
from dnd_vlm import VlmCaptioner, VlmConfig

WEIGHTS = Path(__file__).parents[2] / "plugins/dnd_microworld/weights/microworld-llama"
RUNTIME = Runtime("cpu", lambda name: WEIGHTS)
CAPTIONS = (
    "a red star and a blue ring on a green background with dots",
    "a white star",
    "a purple star and a yellow cross on a cyan background with a grid",
    "a yellow star and a green square on a red background with dots",
    "a blue star on a plain white background",
)

pytestmark = needs.vllm


@pytest.fixture(scope="module")
def vllm() -> Iterator[VllmSummarizer]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several times as fast with so small a model
    config = VllmConfig(model="microworld-llama", python=needs.VLLM_PYTHON, eager=True, structured=False)
    with VllmSummarizer(config, RUNTIME) as summarizer:
        yield summarizer
        assert summarizer._server is not None
        reaper = psutil.Process(summarizer._server._process.pid) if summarizer._server._process else None
        tree = [*reaper.children(recursive=True), reaper] if reaper else []
    assert len(tree) >= 3
    assert not [process for process in tree if process.is_running()]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """With a tiny Qwen2.5-VL."""
    if not find(needs.VLLM_PYTHON).vision:
        pytest.skip("torchvision in the Python that has vLLM, which models that see need")
    folder = tiny_models.qwen2_5_vl(tmp_path_factory.mktemp("seeing"))
    return Runtime("cpu", lambda name: folder)


def test_a_model_that_sees_captions_as_on_transformers_and_lends_its_server(seeing: Runtime) -> None:
    asked = {"model": "tiny", "prompt": "what is on this table", "max_new_tokens": 5, "dtype": "float32"}
    served = {"python": needs.VLLM_PYTHON, "eager": True}
    with VlmCaptioner(VlmConfig(**asked), seeing) as vlm:
        expected = vlm.caption(images(4))
    assert len(set(expected)) == 4
    with VllmCaptioner(VllmCaptionerConfig(**asked, **served), seeing) as captioner:
        assert captioner.caption(images(4)) == expected
        config = VllmConfig(model="tiny", dtype="float32", structured=False, **served)
        summarizer = VllmSummarizer(config, seeing)
        assert summarizer.borrow(captioner)
        with summarizer:
            assert summarizer._server is captioner._server
            assert summarizer.answer([Ask([{"role": "user", "content": "a red dog"}], 0, 0.0)])[0]
        assert captioner.caption(images(4)) == expected, "the server outlives a borrower"


def test_every_flag_is_one_of_this_release() -> None:
    """As its own help says: a flag that a later release drops ends the server at once."""
    config = VllmConfig(model="x", quantization="fp8", eager=True, gpu_memory_fraction=0.5)
    python = find(needs.VLLM_PYTHON)
    told = ""
    for word in ("--help=all", "--help"):
        done = subprocess.run(
            [python.path, "-m", MODULE, word], capture_output=True, text=True, cwd="/", env=server_environment()
        )
        told += done.stdout + done.stderr
    known = set(re.findall(r"--[a-z][a-z0-9-]+", told))
    assert {"--model", "--max-model-len"} <= known, told[-2000:]
    plans = [Plan(2048, ()), Plan(2048, (0, 1, 2, 3), 2)]
    given = {
        one.partition("=")[0]
        for plan in plans
        for one in command(config, plan, python, WEIGHTS, Path("/s"), images=True)
        if one.startswith("--")
    }
    assert {"--data-parallel-size", "--limit-mm-per-prompt"} <= given
    assert given - known == set()


def test_it_names_what_the_captions_share(vllm: VllmSummarizer) -> None:
    found = vllm.summarize([SummaryRequest(CAPTIONS, 5, seed) for seed in range(20)])
    assert sum(concepts[0] == "star" for concepts in found) >= 18


def test_it_rewrites_captions_as_llama_does(vllm: VllmSummarizer) -> None:
    asks = [Ask(simplify_messages(caption), 0, 0.0) for caption in CAPTIONS]
    with LlamaSummarizer(LlamaConfig(model="microworld-llama", batch_size=8), RUNTIME) as llama:
        assert vllm.answer(asks) == llama.answer(asks)


def test_a_seed_gives_one_answer_and_seeds_differ(vllm: VllmSummarizer) -> None:
    asks = [Ask(concept_messages(CAPTIONS), seed, 1.5) for seed in range(60)]
    first = vllm.answer(asks)
    again = vllm.answer(asks)
    assert len(set(first)) > 5
    assert sum(a != b for a, b in zip(first, again, strict=True)) <= 3  # the last bits may hang on the batch
    assert vllm._restarted is False


def test_a_pattern_holds_the_model(vllm: VllmSummarizer) -> None:
    unlikely = "(ring|cross|square)"  # one word: this tokenizer has no token for the space between two
    asks = [Ask(concept_messages(CAPTIONS), seed, 1.0, unlikely) for seed in range(20)]
    held = VllmSummarizer(vllm.config.model_copy(update={"structured": True}), RUNTIME)
    held._client, held._server = vllm._client, vllm._server
    assert not any(re.fullmatch(unlikely, text) for text in vllm.answer(asks))
    assert all(re.fullmatch(unlikely, text) for text in held.answer(asks))


def test_a_guard_that_is_killed_takes_the_engine_along_and_the_work_goes_on(vllm: VllmSummarizer) -> None:
    assert vllm._server is not None
    assert vllm._server._process is not None
    guard = psutil.Process(vllm._server._process.pid)
    tree = guard.children(recursive=True)
    assert len(tree) >= 3
    guard.kill()
    assert psutil.wait_procs(tree, timeout=60)[1] == []
    found = vllm.summarize([SummaryRequest(CAPTIONS, 5, seed) for seed in range(8)])
    assert sum(concepts[0] == "star" for concepts in found) >= 6
