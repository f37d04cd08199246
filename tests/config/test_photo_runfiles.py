"""The run files for photographs: whole, of models that models.lock knows, and with what was learnt in them."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from dnd.config.read import build_run, read_run
from dnd.config.run import Run
from dnd.models.weights import Weights
from dnd.plugin.registry import Registry

PHOTOS = ("full", "gpu24", "gpu80", "satellite", "last-layer-resnet50", "paper")


def read(name: str, tmp_path: Any) -> Run:
    options = {"target.name": "my_network:vegetation", "target.layers": ["1"], "probing.set": str(tmp_path)}
    if name == "satellite":
        del options["probing.set"]
    return read_run(name, Registry.load(), options=options)


@pytest.mark.parametrize("name", PHOTOS)
def test_a_run_file_is_whole_and_names_models_of_the_lock(name: str, tmp_path: Any) -> None:
    run = read(name, tmp_path)
    known = Weights.default().by_name
    assert {model for model in run.models()} <= known.keys()
    assert build_run(tomllib.loads(run.to_toml()), Registry.load()) == run


@pytest.mark.parametrize("name", [name for name in PHOTOS if name != "paper"])
def test_few_steps_without_guidance_and_a_vae_that_does_not_overflow(name: str, tmp_path: Any) -> None:
    run = read(name, tmp_path)
    drawn = run.generator.config
    assert (drawn.guidance, drawn.steps <= 4) == (0.0, True)
    own = Weights.default().by_name[drawn.model].part
    assert drawn.vae == "sdxl-vae-fp16-fix" or any("sdxl-vae-fp16-fix" in part.source for part in own)
    lightning = drawn.unet == "sdxl-lightning-4step"
    assert (drawn.scheduler, drawn.timestep_spacing) == (("euler", "trailing") if lightning else ("default", "default"))
    assert run.exemplars.shortlist > run.exemplars.k
    assert run.summarizer.config.n_samples >= run.concepts.n


def test_the_paper_is_as_published(tmp_path: Any) -> None:
    run = read("paper", tmp_path)
    chosen = (run.captioner.name, run.summarizer.name, run.generator.name, run.scorer.name)
    assert chosen == ("blip", "llama", "diffusers", "clip-rank")
    assert (run.captioner.config.min_new_tokens, run.captioner.config.max_new_tokens) == (5, 32)
    assert (run.summarizer.config.temperature, run.summarizer.config.n_samples) == (0.3, 5)
    assert (run.generator.config.steps, run.generator.config.scheduler, run.images.n) == (50, "dpm++", 10)
    assert (run.exemplars.k, run.exemplars.max_crops, run.exemplars.shortlist, run.scorer.config.top) == (10, 4, 0, 5)
