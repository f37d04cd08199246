"""The method's own switches: each takes its part away and nothing else, and each ablation is a run file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
import toys
from PIL import Image

from dnd import api
from dnd.config.read import build_run, read_run
from dnd.config.tables import read_tables
from dnd.errors import UsageError
from dnd.pipeline.concepts import summary_request
from dnd.pipeline.execute import execute
from dnd.pipeline.plan import plan_stages
from dnd.plugin.registry import Entry, Registry
from dnd.results.run import RunFolder
from dnd.testing import ScorerContract, SummarizerContract, picture, runtime
from dnd_ablations import Captions, ConceptSet, First
from dnd_blip2.exemplars import Blip2Exemplars, phrases
from dnd_hf.sampling import SeededSampler

ABLATIONS = {
    "ablation-clip-rank": {"scorer", "labels"},
    "ablation-concept-set": {"captioner"},
    "ablation-image-product": {"scorer", "labels"},
    "ablation-mean": {"scorer", "labels"},
    "ablation-no-captions": {"captioner", "summarizer"},
    "ablation-no-crops": {"exemplars"},
    "ablation-no-llm": {"summarizer"},
    "ablation-no-selection": {"generator", "scorer", "labels"},
    "ablation-topk-squared": {"scorer", "labels"},
    "clip-dissect": {"method", "captioner", "summarizer", "generator", "scorer"},
    "milan": {"method", "summarizer", "generator", "scorer"},
    "network-dissection": {"method", "captioner", "summarizer", "generator", "scorer"},
}
"""Run file -> the sections in which its run differs from the default."""


@pytest.fixture(autouse=True)
def mood(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toys.MOOD.__init__()  # type: ignore[misc]
    monkeypatch.delenv("DND_STORE", raising=False)
    return


@pytest.fixture(scope="module")
def installed() -> Registry:
    return Registry.load()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return toys.make_photos(tmp_path / "photos")


# --- run files ---------------------------------------------------------------------------------------


def test_every_ablation_is_a_run_file(installed: Registry) -> None:
    default = read_run("default", installed).to_dict()
    for name, sections in ABLATIONS.items():
        own = read_run(name, installed).to_dict()
        assert {key for key in default.keys() | own.keys() if default.get(key) != own.get(key)} == sections, name
    offered = {point.name for point in metadata.entry_points(group="dnd.runfiles")}
    assert set(ABLATIONS) == {name for name in offered if name.startswith("ablation-")} | {
        "clip-dissect",
        "milan",
        "network-dissection",
    }


def test_a_run_file_lies_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "low.toml").write_text(
        'seed = 1\n[captioner]\nbackend = "a"\nmodel = "m"\n[exemplars]\nk = 3\npool = 9\n'
    )
    (tmp_path / "middle.toml").write_text('base = "low.toml"\nseed = 2\n[exemplars]\nk = 4\n')
    (tmp_path / "top.toml").write_text('base = "middle.toml"\n[captioner]\nbackend = "b"\n')
    assert read_tables(tmp_path / "top.toml") == {
        "seed": 2,
        "captioner": {"backend": "b"},  # a setting of another backend means nothing to it
        "exemplars": {"k": 4, "pool": 9},
    }


def test_a_base_must_lead_somewhere(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"')
    (tmp_path / "b.toml").write_text('base = "a.toml"')
    (tmp_path / "c.toml").write_text('base = "defautl"')
    with pytest.raises(UsageError, match="is its own base"):
        read_tables(tmp_path / "a.toml")
    with pytest.raises(UsageError, match="there is no run file defautl"):
        read_tables(tmp_path / "c.toml")


# --- what a run does without -------------------------------------------------------------------------


class Eyes(toys.Batched, api.Summarizer):
    """Names the colours of the exemplars, the strongest's first."""

    name = "eyes"
    reads: Literal["captions", "images"] = "images"
    Config = toys.BatchConfig

    def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
        assert not any(request.captions for request in requests)
        return [
            list(dict.fromkeys(toys.colour_of(one.open()) for one in request.images))[: request.n_concepts]
            for request in requests
        ]


def registry() -> Registry:
    own: dict[str, Any] = {"summarizer": Eyes, "scorer": First}
    entries = [Entry(kind, cls.name, cls, "tests", "1", "ok") for kind, cls in own.items()]
    return Registry([*toys.registry().entries, *entries, Entry("summarizer", "captions", Captions, "tests", "1", "ok")])


def label(photos: Path, out: Path, net: torch.nn.Module | None = None, **tables: Any) -> RunFolder:
    base = toys.toy_run(photos).to_dict()
    for name, table in tables.items():
        base[name] = table if "backend" in table else {**base[name], **table}
    run = build_run(base, registry(), live_target=True)
    return execute(run, out, registry=registry(), live=(net or toys.Net(), toys.preprocess))


def stages(out: Path) -> list[str]:
    return list(json.loads((out / "run.json").read_text())["stages"])


def first_labels(result: RunFolder) -> list[str]:
    return [one.labels[0][0] for one in result.labels[:3]]


def test_a_summarizer_that_reads_images_needs_no_captions(photos: Path, tmp_path: Path) -> None:
    result = label(photos, tmp_path / "run", summarizer={"backend": "eyes"}, captioner={"backend": "nonsense"})
    assert first_labels(result) == ["red", "green", "blue"]
    assert stages(tmp_path / "run") == ["exemplars", "concepts", "images", "activations", "scores"]
    assert "captioner" not in (tmp_path / "run" / "run.toml").read_text()
    line = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[0])
    assert line["exemplars"][0]["caption"] is None


def test_without_selection_no_image_is_made(photos: Path, tmp_path: Path) -> None:
    result = label(photos, tmp_path / "run", scorer={"backend": "first"}, labels={"min_auc": 1.0})
    assert first_labels(result) == ["red", "green", "blue"]
    assert [one.status for one in result.labels] == ["labelled"] * 3 + ["uninterpretable"]  # which is silent
    assert stages(tmp_path / "run") == ["exemplars", "captions", "concepts", "scores"]
    assert not toys.MOOD.calls.get("images")
    line = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[0])
    assert line["candidates"][0] == {"concept": "red", "score": 1.0}


def test_the_plan_leaves_out_what_is_not_needed(photos: Path) -> None:
    base = {**toys.toy_run(photos).to_dict(), "scorer": {"backend": "first"}, "summarizer": {"backend": "eyes"}}
    run = build_run(base, registry(), live_target=True)
    assert [plan.name for plan in plan_stages(run, 4, 24, {})] == ["exemplars", "crops", "concepts", "scores"]
    assert {"captioner", "generator"}.isdisjoint(run.choices())


def test_without_a_language_model_captions_are_the_candidates(photos: Path, tmp_path: Path) -> None:
    result = label(photos, tmp_path / "run", summarizer={"backend": "captions"}, scorer={"backend": "first"})
    assert first_labels(result) == ["a red thing", "a green thing", "a blue thing"]


def test_captions_by_their_number() -> None:
    captions = ("A Cat", "two  dogs", "a cat", "x" * 60 + " " + "y" * 60, "two dogs", "a cat", "a bird")
    asked = [api.SummaryRequest(captions, 3, 0)]
    assert Captions(Captions.Config(), runtime()).summarize(asked) == [["a cat", "two dogs", "x" * 60]]


class TestCaptions(SummarizerContract):
    backend = Captions


class TestFirst(ScorerContract):
    backend = First


def test_every_run_and_unit_asks_with_its_own_seed() -> None:
    def asked(seed: int, unit: api.Unit) -> api.SummaryRequest:
        job: Any = SimpleNamespace(run=SimpleNamespace(seed=seed, concepts=SimpleNamespace(n=5)))
        return summary_request(job, unit, ("a dog", "a cat", "a dog"), ())

    requests = [asked(seed, api.Unit(layer, index)) for seed in (0, 1) for layer in ("a", "b") for index in (0, 1)]
    assert len({request.seed for request in requests}) == len(requests) == 8
    assert asked(1, api.Unit("b", 1)) == requests[7]
    assert {(request.captions, request.n_concepts) for request in requests} == {(("a dog", "a cat", "a dog"), 5)}


# --- models ------------------------------------------------------------------------------------------


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    (tmp_path / "colours.txt").write_text("red\nblue\ngreen\n")
    return tmp_path / "colours.txt"


def test_a_concept_set_in_place_of_captions(colours: Path) -> None:
    config = ConceptSet.Config(model="microworld-clip", concepts=str(colours), nearest=2)
    with ConceptSet(config, runtime()) as captioner:
        flat = [Image.new("RGB", (64, 64), colour) for colour in ((220, 30, 30), (30, 60, 210))]
        found = captioner.caption(flat)
        assert [text.split(", ")[0] for text in found] == ["red", "blue"]
        assert all(len(text.split(", ")) == 2 for text in found)
        before = captioner.chosen()
    colours.write_text("red\n")
    assert ConceptSet(config, runtime()).chosen() != before


def test_a_concept_set_that_is_not_there(tmp_path: Path) -> None:
    config = ConceptSet.Config(model="microworld-clip", concepts=str(tmp_path / "none.txt"))
    assert "cannot read the concept set" in str(next(iter(ConceptSet(config, runtime()).check())))


def test_only_what_all_images_show_stays_likely() -> None:
    """Each image has a favourite of its own; the product prefers what both like well."""
    logs = torch.tensor([[0.6, 0.4, 1e-6], [1e-6, 0.4, 0.6]]).log()
    product = SeededSampler([0], [0.0], 5, together=2)
    assert product(None, logs).argmax(-1).tolist() == [1, 1]


def test_texts_do_not_depend_on_their_neighbours() -> None:
    torch.manual_seed(0)
    logs = torch.randn(2, 50)

    def drawn(seeds: list[int], likeliest: int = 0) -> list[int]:
        """Two tokens of each text; the first `likeliest` texts take the likeliest one."""
        temperatures = [0.0] * likeliest + [1.0] * (len(seeds) - likeliest)
        product = SeededSampler(seeds, temperatures, 3, together=2)
        first = product(None, logs.repeat(len(seeds), 1)).argmax(-1)
        assert (first[::2] == first[1::2]).all()
        return [*first[::2].tolist(), *product(None, logs.repeat(len(seeds), 1)).argmax(-1)[::2].tolist()]

    together = drawn([0, 7, 8], likeliest=1)
    assert together[1::3] == drawn([7])
    assert together[2::3] == drawn([8])
    assert len(set(drawn(list(range(20))))) > 5


def test_noun_phrases_of_a_description() -> None:
    said = "A red star on the dotted, blue background with two rings that are a very long list of many words"
    assert phrases(said) == ["red star", "dotted", "blue background", "rings", "very long list", "many words"]
    assert phrases("") == []


def test_one_description_of_all_exemplars() -> None:
    """Scenes that have little in common but a red star: of its shape this small model is not sure."""
    from dnd_microworld import world

    scenes = [scene for scene in world.draw_scenes("probing", 0, 1500) if "red star" in world.concepts(scene)][:6]
    pixels = world.render(scenes).images
    pictures = tuple(picture(Image.fromarray(one)) for one in pixels)
    config = Blip2Exemplars.Config(model="microworld-blip2", tries=2)
    with Blip2Exemplars(config, runtime()) as summarizer:
        found = summarizer.summarize([api.SummaryRequest((), 4, 3, pictures)])[0]
    assert found[0].split()[0] == "red"
    assert 2 <= len(found) <= 4
