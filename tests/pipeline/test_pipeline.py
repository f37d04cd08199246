"""The whole pipeline over the toy world: right answers, whatever the order, the batches and the faults."""

from __future__ import annotations

import asyncio
import csv
import gc
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tomli_w
import torch
import toys
from PIL import Image
from rich.console import Console

from dnd import api
from dnd.cli.labels_table import show_result
from dnd.config.run import BACKENDS
from dnd.errors import PluginError, UsageError
from dnd.pipeline.execute import _choice_of_units, execute
from dnd.plugin.registry import Entry
from dnd.results.run import RunFolder

ANSWERS = {0: "red", 1: "green", 2: "blue"}


@pytest.fixture(autouse=True)
def mood() -> Iterator[toys.Mood]:
    toys.MOOD.__init__()  # type: ignore[misc]
    return toys.MOOD


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return toys.make_photos(tmp_path / "photos")


def label(photos: Path, out: Path, fresh: bool = False, **tables: Any) -> RunFolder:
    run = toys.toy_run(photos, **tables)
    return execute(run, out, fresh=fresh, registry=toys.registry(), live=(toys.Net(), toys.preprocess))


def table(folder: Path) -> str:
    return (folder / "labels.csv").read_text()


def stages(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())["stages"]
    return found


def test_every_unit_gets_its_colour(photos: Path, tmp_path: Path) -> None:
    result = label(photos, tmp_path / "run")
    rows = list(csv.DictReader(table(tmp_path / "run").splitlines()))
    assert {int(r["unit"]): r["label"] for r in rows if r["status"] == "labelled"} == ANSWERS
    assert rows[3]["status"] == "uninterpretable"
    assert not rows[3]["label"]
    assert result.exit_code == 0
    assert [unit.label.labels for unit in result][1:3] == [label.labels for label in result.labels[1:3]]
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"run.toml", "run.json", "labels.csv", "labels.jsonl"}
    line = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[0])
    assert {e["caption"] for e in line["exemplars"]} == {"a red thing"}
    assert len(line["candidates"]) == 3
    assert len(line["candidates"][0]["images"]) == 4


def test_images_of_other_units_labels_are_what_candidates_are_compared_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit's own colour activates it more than the others' labels do; nothing is computed for that."""
    monkeypatch.setattr(toys.Summarizer, "summarize", lambda self, asked: [[a.captions[0].split()[1]] for a in asked])
    monkeypatch.setattr("dnd.pipeline.controls.LEAST", 2)
    label(photos, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "labels.jsonl").read_text().splitlines()]
    assert [line["candidates"][0]["control_auc"] for line in lines[:3]] == [1.0] * 3
    assert stages(tmp_path / "run")["activations"]["items"] <= 3 * 4
    monkeypatch.setattr("dnd.pipeline.controls.LEAST", 3)  # more than there are
    label(photos, tmp_path / "again")
    assert "control_auc" not in (tmp_path / "again" / "labels.jsonl").read_text()


def test_a_steered_network_gets_answers_of_its_own_from_a_shared_store(photos: Path, tmp_path: Path) -> None:
    run, net = toys.toy_run(photos), toys.Net()
    before = execute(run, tmp_path / "before", registry=toys.registry(), live=(net, toys.preprocess))
    handle = net.units.register_forward_hook(lambda module, inputs, output: output.roll(1, 1))
    after = execute(run, tmp_path / "after", registry=toys.registry(), live=(net, toys.preprocess))
    handle.remove()
    again = execute(run, tmp_path / "again", registry=toys.registry(), live=(net, toys.preprocess))
    named = [{line.unit.index: line.labels[0][0] for line in r.labels if line.labels} for r in (before, after, again)]
    assert [{u: n[u] for u in n if u != silent} for n, silent in zip(named, (3, 0, 3), strict=True)] == [
        ANSWERS,
        {1: "red", 2: "green", 3: "blue"},
        ANSWERS,
    ]
    facts = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("before", "after", "again")]
    assert [len(one["hooks"]) for one in facts] == [0, 1, 0]
    assert facts[0]["target"] == facts[2]["target"] != facts[1]["target"]


class Misbehaving(toys.Scorer):
    """Alters the process around it, or the evidence, then scores as its parent does."""

    name = "misbehaving"
    deed = staticmethod(lambda evidence: None)

    def score(self, evidence: Any) -> list[list[float]]:
        self.deed(evidence)
        return super().score(evidence)


def misbehaving(deed: Any) -> Any:
    cls = type("Doing", (Misbehaving,), {"deed": staticmethod(deed)})
    known = toys.registry()
    return type(known)([*known.entries, Entry("scorer", "misbehaving", cls, "toys", "1", "ok")])


def label_with(deed: Any, photos: Path, out: Path) -> RunFolder:
    known = misbehaving(deed)
    run = toys.toy_run(photos, known, scorer={"backend": "misbehaving"})
    return execute(run, out, registry=known, live=(toys.Net(), toys.preprocess))


def test_a_scorer_cannot_change_the_evidence(photos: Path, tmp_path: Path) -> None:
    def deed(evidence: Any) -> None:
        for one in evidence:
            one.activations[:] = 0

    for out in ("first", "second"):
        result = label_with(deed, photos, tmp_path / out)
        assert {line.status for line in result.labels[:3]} == {"failed"}
        assert "read-only" in result.labels[0].reason


class Emptying(toys.Captioner):
    def caption(self, images: Any) -> Any:
        return [super(Emptying, self).caption([image])[0] for image in images] + [images.clear()][1:]


class Rewriting(toys.Summarizer):
    def summarize(self, requests: Any) -> Any:
        answers = super().summarize(requests)
        for one in requests:
            object.__setattr__(one, "n_concepts", 1)
        requests.clear()
        return answers


class Repainting(toys.Generator):
    def generate(self, requests: Any) -> Any:
        answers = super().generate(requests)
        for one in requests:
            object.__setattr__(one, "concept", "blue")
        requests.reverse()
        return answers


class Confusing(toys.Scorer):
    def score(self, evidence: Any) -> Any:
        answers = super().score(evidence)
        for one in evidence:
            object.__setattr__(one, "concepts", one.concepts[::-1])
            object.__setattr__(one.unit, "index", 0)
        evidence.clear()
        return answers


@pytest.mark.parametrize("kind", ["captioner", "summarizer", "generator", "scorer"])
def test_what_a_backend_does_to_its_items_changes_nothing(kind: str, photos: Path, tmp_path: Path) -> None:
    cls = {"captioner": Emptying, "summarizer": Rewriting, "generator": Repainting, "scorer": Confusing}[kind]
    known = type(toys.registry())(
        [*(one for one in toys.registry().entries if one.kind != kind), Entry(kind, "toy", cls, "toys", "1", "ok")]
    )
    for name, registry in (("clean", toys.registry()), ("first", known), ("second", known)):
        out = tmp_path / ("apart" if name == "clean" else "") / name
        execute(toys.toy_run(photos, registry), out, registry=registry, live=(toys.Net(), toys.preprocess))
    clean = (tmp_path / "apart/clean/labels.jsonl").read_text()
    assert (tmp_path / "first/labels.jsonl").read_text() == clean == (tmp_path / "second/labels.jsonl").read_text()


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), asyncio.CancelledError()])
def test_a_backend_that_ends_the_process_fails_by_name(error: BaseException, photos: Path, tmp_path: Path) -> None:
    def deed(evidence: Any) -> None:
        raise error

    result = label_with(deed, photos, tmp_path / "run")
    assert result.exit_code == 3
    assert f"misbehaving ends the process with {type(error).__name__}" in result.labels[0].reason


def test_ctrl_c_in_a_backend_is_still_ctrl_c(photos: Path, tmp_path: Path) -> None:
    def deed(evidence: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_with(deed, photos, tmp_path / "run")


def test_a_preprocess_that_ends_the_process_is_an_error(photos: Path, tmp_path: Path) -> None:
    def preprocess(image: Image.Image) -> torch.Tensor:
        sys.exit(0)

    with pytest.raises(PluginError, match=r"of the target ends the process with SystemExit\(0\) \(test_pipeline.py:"):
        execute(toys.toy_run(photos), tmp_path / "run", registry=toys.registry(), live=(toys.Net(), preprocess))


def test_a_backend_that_changes_the_process_is_named_and_undone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def deed(evidence: Any) -> None:
        os.chdir(tmp_path / "elsewhere")
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        np.seterr(all="raise")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        warnings.simplefilter("error")
        sys.stderr = sys.stdout = None  # type: ignore[assignment]

    def state() -> list[object]:
        shared = [torch.get_default_device(), torch.is_grad_enabled(), np.geterr(), signal.getsignal(signal.SIGTERM)]
        return [*shared, sum(one[0] == "error" for one in warnings.filters), sys.stderr, sys.stdout]

    before = state()
    result = label_with(deed, Path("photos"), Path("run"))
    assert {line.unit.index: line.labels[0][0] for line in result.labels[:3]} == ANSWERS
    assert (Path.cwd(), torch.get_default_dtype()) == (tmp_path, torch.float32)
    assert state() == before
    assert (tmp_path / "run" / "labels.csv").exists()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "misbehaving changed the current folder" in caplog.text
    assert "misbehaving changed torch's default dtype to torch.float64" in caplog.text
    assert "misbehaving changed torch's default device to meta" in caplog.text


def test_a_live_module_is_described_from_python(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dnd

    monkeypatch.setattr("dnd.pipeline.describe.Registry.load", toys.registry)
    toy = {kind: "toy" for kind in ("captioner", "summarizer", "generator", "scorer")}
    settings = {"exemplars.k": 4, "exemplars.sample": 12, "images.n": 4, "labels.min_auc": 0.7}
    network = toys.Net().train()
    run = dnd.describe(
        network,
        layer="units",
        images=photos,
        preprocess=toys.preprocess,
        units=[2, 0],
        settings=settings,
        out=tmp_path / "run",
        device="cpu",
        **toy,
    )
    assert [(one.unit.index, one.labels[0][0]) for one in run.labels] == [(0, "red"), (2, "blue")]
    assert network.training
    assert run.facts["layers"] == {"units": "units = axis 1 (4), map 8x8"}
    console = Console(file=io.StringIO(), width=200)
    rows = dnd.describe(
        network,
        layer="units",
        images=photos,
        preprocess=toys.preprocess,
        units=[0],
        layout="batch other units other",
        call=0,
        settings=settings,
        out=tmp_path / "rows",
        device="cpu",
        console=console,
        **toy,
    )
    assert rows.facts["layers"] == {"units": "units = axis 2 (8), no map"}
    assert "units: units = axis 2 (8), no map\n1 of 8 units\n" in console.file.getvalue()
    assert (rows.settings["target"]["layout"], rows.settings["target"]["call"]) == ("batch other units other", 0)
    assert rows.facts["target"] != run.facts["target"]
    with pytest.raises(UsageError, match="preprocess"):
        dnd.describe(network, layer="units", images=photos)
    with pytest.raises(UsageError, match="the model is a int"):
        dnd.describe(3, layer="units", images=photos, preprocess=toys.preprocess)  # type: ignore[arg-type]


def test_two_descriptions_of_one_second_do_not_collide(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dnd

    monkeypatch.setattr("dnd.pipeline.describe.Registry.load", toys.registry)
    monkeypatch.setattr("time.strftime", lambda form, *when: "20260102-030405")
    monkeypatch.chdir(tmp_path)
    toy = {kind: "toy" for kind in ("captioner", "summarizer", "generator", "scorer")}
    for unit in (0, 1):
        run = dnd.describe(
            toys.Net(),
            layer="units",
            images=photos,
            preprocess=toys.preprocess,
            units=[unit],
            settings={"exemplars.k": 4, "exemplars.sample": 12, "images.n": 4},
            device="cpu",
            **toy,
        )
        assert [one.unit.index for one in run.labels] == [unit]


def test_batch_size_order_and_company_change_nothing(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "a" / "run")
    backends = {k: {"backend": "toy", "batch_size": 1} for k in ("captioner", "summarizer", "generator", "scorer")}
    label(photos, tmp_path / "b" / "run", batch_size=3, **backends)
    assert table(tmp_path / "b" / "run") == table(tmp_path / "a" / "run")
    for unit in range(4):
        alone = tmp_path / f"alone{unit}" / "run"
        label(photos, alone, target={"name": "Net", "layers": ["units"], "units": str(unit)})
        assert table(alone).splitlines()[1] == table(tmp_path / "a" / "run").splitlines()[unit + 1]


def test_each_distinct_thing_is_computed_once(photos: Path, tmp_path: Path, mood: toys.Mood) -> None:
    label(photos, tmp_path / "run")
    assert sum(mood.calls["images"]) == 3 * 4  # three concepts between all units, four seeds each
    captions = stages(tmp_path / "run")["captions"]
    assert sum(mood.calls["captions"]) == captions["computed"] == captions["items"] <= 24


@pytest.mark.parametrize("lends", [True, False])
def test_what_the_captioner_has_loaded_serves_the_summarizer_and_is_closed_before_the_generator(
    lends: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    for kind in (toys.Captioner, toys.Summarizer, toys.Generator):
        name = kind.__name__
        monkeypatch.setattr(kind, "load", lambda self, name=name: seen.append(f"{name} loads"))
        monkeypatch.setattr(kind, "close", lambda self, name=name: seen.append(f"{name} closes"))
    monkeypatch.setattr(toys.Summarizer, "borrow", lambda self, lender: lends and isinstance(lender, toys.Captioner))
    label(photos, tmp_path / "run")
    order = ["Captioner loads", "Captioner closes", "Summarizer loads", "Summarizer closes", "Generator loads"]
    if lends:
        order = ["Captioner loads", "Summarizer loads", "Summarizer closes", "Captioner closes", "Generator loads"]
    assert seen[:5] == order
    seen.clear()
    label(photos, tmp_path / "run2", labels={"min_auc": 0.6})
    assert seen == [], "all is known: nothing is loaded"


def test_every_synthetic_image_has_a_seed_of_its_own(photos: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        label(photos, tmp_path / str(seed), seed=seed)
    parts = tmp_path.glob(".dnd-store/images-*/part-*.parquet")
    seeds = [seed for part in parts for seed in pq.read_table(part).column("seed").to_pylist()]
    assert len(set(seeds)) == len(seeds) == 2 * 3 * 4


def test_runs_that_agree_on_a_prefix_share_it(photos: Path, tmp_path: Path, mood: toys.Mood) -> None:
    label(photos, tmp_path / "one")
    mood.calls.clear()
    label(photos, tmp_path / "two", images={"n": 2})
    assert set(mood.calls) == {"scores"}
    computed = {name: stage["computed"] for name, stage in stages(tmp_path / "two").items()}
    assert computed == {"exemplars": 0, "captions": 0, "concepts": 0, "images": 0, "activations": 0, "scores": 3}


def test_a_changed_setting_is_computed_anew(photos: Path, tmp_path: Path, mood: toys.Mood) -> None:
    label(photos, tmp_path / "one")
    mood.calls.clear()
    label(photos, tmp_path / "two", captioner={"backend": "toy", "suffix": "!"})
    assert "captions" in mood.calls


def test_a_failing_item_fails_its_unit_alone(photos: Path, tmp_path: Path, mood: toys.Mood) -> None:
    mood.fail_on = {"green"}
    result = label(photos, tmp_path / "run", concepts={"n": 1})
    by_unit = {one.unit.index: one for one in result.labels}
    assert by_unit[1].status == "failed"
    assert "cannot do green" in by_unit[1].reason
    assert [by_unit[u].labels[0][0] for u in (0, 2)] == ["red", "blue"]
    assert result.exit_code == 3
    mood.fail_on = set()
    again = label(photos, tmp_path / "run", concepts={"n": 1})
    assert again.exit_code == 0
    assert again.labels[1].labels[0][0] == "green"


def test_too_few_answers_are_a_failure_not_a_shift(photos: Path, tmp_path: Path, mood: toys.Mood) -> None:
    mood.short_on = {"blue"}
    result = label(photos, tmp_path / "run")
    assert [one.status for one in result.labels] == ["labelled", "labelled", "failed", "uninterpretable"]
    assert "0 answers came back for 1" in result.labels[2].reason


@pytest.mark.parametrize(
    ("kind", "method", "bad", "reason"),
    [
        ("Captioner", "caption", "", "captions: not a caption: ''"),
        ("Captioner", "caption", "x" * 100_000, "captions: not a caption: 'xxx"),
        ("Captioner", "caption", None, "captions: not a caption: None"),
        ("Captioner", "caption", "half a \ud83d", "captions: not a caption: 'half a \\ud83d'"),
        ("Summarizer", "summarize", [], "concepts: not a list of candidate concepts: []"),
        ("Summarizer", "summarize", "green", "concepts: not a list of candidate concepts: 'green'"),
        ("Summarizer", "summarize", ["y" * 5000], "concepts: not a list of candidate concepts: ['yyy"),
        ("Scorer", "score", [float("nan")] * 3, "scores: not one finite score per candidate: [nan"),
        ("Scorer", "score", [0.5], "scores: not one finite score per candidate: [0.5]"),
    ],
)
def test_what_is_no_answer_fails_its_unit_with_the_reason(
    kind: str, method: str, bad: Any, reason: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = getattr(toys, kind)
    plain = getattr(cls, method)

    def is_green(item: Any) -> bool:
        if isinstance(item, Image.Image):
            return toys.colour_of(item) == "green"
        return "green" in item.captions[0] if isinstance(item, api.SummaryRequest) else item.unit.index == 1

    def answer(self: Any, items: Any) -> list[Any]:
        return [bad if is_green(item) else good for item, good in zip(items, plain(self, items), strict=True)]

    monkeypatch.setattr(cls, method, answer)
    result = label(photos, tmp_path / "run")
    by_unit = {one.unit.index: one for one in result.labels}
    assert by_unit[1].status == "failed"
    assert by_unit[1].reason.startswith(reason)
    assert len(by_unit[1].reason) < 500
    assert [by_unit[u].labels[0][0] for u in (0, 2)] == ["red", "blue"]
    assert result.exit_code == 3


def draw_for_green(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the generator give `bad` for this concept."""
    plain = toys.Generator.generate

    def generate(self: Any, requests: Any) -> list[Any]:
        drawn = zip(requests, plain(self, requests), strict=True)
        return [bad if r.concept == "green" else image for r, image in drawn]

    monkeypatch.setattr(toys.Generator, "generate", generate)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Image.new("RGB", (1, 1)), "images: not an image of a usable size: 1x1"),
        (Image.new("L", (9000, 10)), "images: not an image of a usable size: 9000x10"),
        ("green", "images: not an image but str"),
        (None, "only 0 images show it"),
    ],
)
def test_a_candidate_that_cannot_be_drawn_is_dropped_and_the_rest_are_judged(
    bad: Any, reason: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_for_green(bad, monkeypatch)
    result = label(photos, tmp_path / "run")
    assert [one.labels[0][0] for one in result.labels if one.unit.index in (0, 2)] == ["red", "blue"]
    assert result.exit_code == 0
    line = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[0])
    assert line["dropped"] == [{"concept": "green", "reason": reason}]
    assert {candidate["concept"] for candidate in line["candidates"]} == {"red", "blue"}


def test_a_unit_none_of_whose_candidates_can_be_drawn_has_failed_and_a_silent_one_keeps_its_evidence(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_for_green("green", monkeypatch)
    result = label(photos, tmp_path / "run", concepts={"n": 1}, labels={"min_score": 2.0})
    assert result.labels[1].status == "failed"
    assert result.labels[1].reason == "images: not an image but str"
    assert "explains too little" in result.labels[0].reason
    silent = json.loads((tmp_path / "run" / "labels.jsonl").read_text().splitlines()[3])
    assert (len(silent["exemplars"]), silent["sample"]["n"]) == (0, 12)


def show(images: dict[str, list[Image.Image]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator has these images of a concept and no others."""

    def shown(self: object, requests: list[api.ImageRequest]) -> list[Image.Image | None]:
        return [dict(enumerate(images[one.concept])).get(one.number) for one in requests]

    monkeypatch.setattr(toys.Generator, "generate", shown)


def test_a_candidate_that_few_images_show_is_not_scored(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three different ones are enough, beside four of another; the same one four times is one."""
    red, green = [toys.flat("red", seed) for seed in range(100, 104)], [toys.flat("green", s) for s in range(100, 103)]
    show({"red": red, "green": green, "blue": [toys.flat("blue", 100)] * 4}, monkeypatch)
    result = label(photos, tmp_path / "run")
    assert [one.status for one in result.labels[:3]] == ["labelled", "labelled", "uninterpretable"]
    assert [one.labels[0][0] for one in result.labels[:2]] == ["red", "green"]
    unit = result.unit(0)
    assert {one.concept: len(one.images) for one in unit.candidates} == {"red": 4, "green": 3}
    assert np.isfinite([shown.activation for one in unit.candidates for shown in one.images]).all()
    assert [one.auc > 0.8 for one in unit.candidates if one.auc is not None] == [True, False]
    assert [(one.concept, one.reason) for one in unit.dropped] == [("blue", "only 1 image shows it")]
    alone = label(photos, tmp_path / "alone", concepts={"n": 1})
    assert (alone.labels[2].status, alone.labels[2].reason) == ("uninterpretable", "'blue': only 1 image shows it")
    assert label(photos, tmp_path / "again").exit_code == 0
    assert stages(tmp_path / "again")["images"]["computed"] == 0


@pytest.mark.parametrize("stopping", ["off", "exact", "economy"])
def test_what_suggested_a_concept_does_not_test_it(
    stopping: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator that shows a unit's exemplars."""
    made = {colour: [toys.flat(colour, seed) for seed in range(100, 104)] for colour in toys.COLOURS}
    show(made | {"red": [toys.flat("red", number) for number in range(0, 24, 3)]}, monkeypatch)
    images = {"n": 4, "early_stopping": stopping}
    result = label(photos, tmp_path / "run", exemplars={"k": 8, "sample": 12, "crops": False}, images=images)
    assert [one.concept for one in result.unit(0).dropped] == ["red"]
    assert "exemplars" in result.unit(0).dropped[0].reason
    assert [result.unit(unit).concept for unit in (1, 2)] == ["green", "blue"]


def test_a_unit_goes_on_without_the_captions_that_failed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to two of them; the gap is in its record."""
    plain = toys.Captioner.caption

    def some(self: toys.Captioner, images: Any) -> list[str]:
        odd = [zlib.crc32(image.tobytes()) % 3 == 0 for image in images]
        return ["" if lost else caption for lost, caption in zip(odd, plain(self, images), strict=True)]

    monkeypatch.setattr(toys.Captioner, "caption", some)
    result = label(photos, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "labels.jsonl").read_text().splitlines()]
    gaps = [sum(one["caption"] is None for one in record["exemplars"]) for record in records[:3]]
    assert any(gaps), "some caption is missing"
    for record, gap, found in zip(records, gaps, result.labels, strict=False):
        assert (found.status == "failed") == (len(record["exemplars"]) - gap < 2)


def test_a_unit_that_overflows_on_synthetic_images_fails_alone(photos: Path, tmp_path: Path) -> None:
    class Overflow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            too_much = (x[:, :1].mean((2, 3), keepdim=True) > 0.75) & (torch.arange(4) == 0)[:, None, None]
            return torch.where(too_much, torch.inf, x)

    net = toys.Net()
    net.units = torch.nn.Sequential(net.units, Overflow())  # type: ignore[assignment]
    for file in photos.iterdir():  # every photo is too dark for that, synthetic images are not
        Image.open(file).point(lambda value: value * 0.7).save(file)
    run = toys.toy_run(photos)
    found = execute(run, tmp_path / "run", registry=toys.registry(), live=(net, toys.preprocess))
    assert [label.status for label in found.labels] == ["failed", "labelled", "labelled", "uninterpretable"]
    assert "synthetic images are not finite" in found.labels[0].reason
    for line in (tmp_path / "run" / "labels.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_run_may_go_on_otherwise(photos: Path, tmp_path: Path) -> None:
    """Settings that change no answer may differ when a run goes on."""
    label(photos, tmp_path / "run", workers=2)
    label(photos, tmp_path / "run", workers=3)
    assert sum(stage["computed"] for stage in stages(tmp_path / "run").values()) == 0
    assert "workers = 3" in (tmp_path / "run" / "run.toml").read_text()


def test_a_broken_backend_stops_the_run_and_loses_nothing(photos: Path, tmp_path: Path, mood: toys.Mood) -> None:
    mood.fail_on = set(toys.COLOURS)
    with pytest.raises(PluginError, match="every item") as caught:
        label(toys.make_photos(tmp_path / "many", 90), tmp_path / "run", exemplars={"k": 10, "sample": 12})
    assert "same command" in caught.value.hint


def test_a_folder_of_another_run_is_refused(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "run")
    before = table(tmp_path / "run")
    with pytest.raises(UsageError, match="other settings") as caught:
        label(photos, tmp_path / "run", seed=1)
    assert "--out" in caught.value.hint
    assert table(tmp_path / "run") == before
    label(photos, tmp_path / "run", fresh=True, seed=1)


def test_a_folder_of_another_run_says_which_settings_differ(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "run", exemplars={"k": 4, "sample": 12}, captioner={"backend": "toy", "batch_size": 1})
    with pytest.raises(UsageError) as caught:
        label(photos, tmp_path / "run", exemplars={"k": 5, "sample": 12}, seed=3)
    assert "exemplars.k is 4 there, 5 here" in str(caught.value)
    assert "seed is 0 there, 3 here" in str(caught.value)
    assert "sample" not in str(caught.value)


def test_a_run_of_an_earlier_version_goes_on(photos: Path, tmp_path: Path) -> None:
    """Its run.toml has settings that are gone, and lacks those that came since."""
    label(photos, tmp_path / "run")
    file = tmp_path / "run" / "run.toml"
    tables = tomllib.loads(file.read_text())
    tables["concepts"]["clusters"] = 1
    del tables["labels"]["min_confidence"]
    file.write_text(tomli_w.dumps(tables))
    label(photos, tmp_path / "run")
    assert sum(stage["computed"] for stage in stages(tmp_path / "run").values()) == 0
    assert "clusters" not in file.read_text()


def test_a_bug_in_a_plugin_names_the_plugin(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(self: object, *rest: object) -> None:
        raise KeyError("weights")

    with monkeypatch.context() as patch:
        patch.setattr(toys.Scorer, "load", bad)
        with pytest.raises(KeyError) as caught:
            label(photos, tmp_path / "load")
    assert caught.value.__notes__ == ["in toy, while it was loaded"]

    plain = toys.Scorer.score

    def half(self: toys.Scorer, evidence: Any) -> Any:
        return bad(self) if any(one.unit.index == 1 for one in evidence) else plain(self, evidence)

    monkeypatch.setattr(toys.Scorer, "score", half)
    with caplog.at_level("INFO", "dnd"):
        result = label(photos, tmp_path / "score")
    assert result.labels[1].reason == "scores: KeyError: 'weights'"
    assert re.search(r"no answer for .*: KeyError: 'weights' \(test_pipeline\.py:\d+\)", caplog.text)


def test_what_was_found_in_the_store_is_said(photos: Path, tmp_path: Path) -> None:
    def said(out: str) -> str:
        console = Console(file=io.StringIO(), width=100)
        run = toys.toy_run(photos)
        live = toys.Net(), toys.preprocess
        show_result(console, execute(run, tmp_path / out, registry=toys.registry(), live=live))
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert "Found in the store" not in said("first")
    assert "Found in the store: exemplars 4 of 4, captions 12 of 12, concepts 3 of 3, images 12 of 12" in said("again")


def test_a_run_that_never_began_leaves_its_folder_free(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no layer"):
        label(photos, tmp_path / "run", target={"name": "Net", "layers": ["unit"]})
    label(photos, tmp_path / "run")


class Wide(torch.nn.Module):
    """Units of colours of their own."""

    def __init__(self, units: int) -> None:
        super().__init__()
        weights = torch.rand(units, 3, generator=torch.Generator().manual_seed(0))
        self.units = torch.nn.Linear(3, units, bias=False)
        self.units.weight.data = torch.nn.functional.normalize(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.units(x.mean((2, 3)))
        return found


def test_what_is_known_of_a_unit_is_not_kept_in_memory(photos: Path, tmp_path: Path) -> None:
    """At full scale, and with what is in use meanwhile: benchmarks/scale.py."""

    def kept(units: int) -> int:
        out = tmp_path / f"run {len(list(tmp_path.iterdir()))}"
        live = (Wide(units), toys.preprocess)
        backends = {kind: {"backend": "toy", "batch_size": 64} for kind in BACKENDS}
        gc.collect()
        tracemalloc.start()
        result = execute(toys.toy_run(photos, **backends), out, registry=toys.registry(), live=live)
        gc.collect()
        bytes_kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(result) == units
        assert result[units - 1].exemplars[0].caption
        return bytes_kept

    kept(400)  # imports and caches
    grown = (kept(400) - kept(100)) / 300
    assert grown < 1500  # its label, mostly


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no list of open files on this system")
def test_a_run_that_nobody_holds_leaves_no_file_open(photos: Path, tmp_path: Path) -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    label(photos, tmp_path / "first")
    gc.collect()
    before = opened()
    gc.disable()
    try:
        label(photos, tmp_path / "second", seed=1)
        assert opened() == before
    finally:
        gc.enable()


def test_killed_at_any_moment_it_resumes_to_the_same_table(photos: Path, tmp_path: Path) -> None:
    label(photos, tmp_path / "whole" / "run")
    script = textwrap.dedent(
        f"""
        import sys, threading, time
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import toys
        from dnd.store import images as store, table
        from dnd.pipeline.execute import execute
        plain = store.write_atomic
        left, gate = int(sys.argv[2]), threading.Lock()
        def some(path, data, **options):
            global left
            with gate:
                if not left:
                    print("now", file=sys.__stdout__, flush=True)
                    time.sleep(600)
                left -= 1
            return plain(path, data, **options)
        store.write_atomic = table.write_atomic = some
        run = toys.toy_run(Path({str(photos)!r}))
        execute(run, Path(sys.argv[1]), registry=toys.registry(), live=(toys.Net(), toys.preprocess))
        """
    )
    out = tmp_path / "killed" / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for writes in (2, 9, 14):
        command = [sys.executable, "-c", script, str(out), str(writes)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        assert said == "now\n"
        assert not (out / "labels.csv").exists()
    label(photos, out)
    assert table(out) == table(tmp_path / "whole" / "run")
    done = stages(out)
    assert done["captions"]["computed"] < done["captions"]["items"]


class Rare(torch.nn.Module):
    """Unit 0 responds to red alone, unit 1 to three images of the folder."""

    def __init__(self) -> None:
        super().__init__()
        self.units = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        red, green, blue = x.mean((2, 3)).T
        rare = torch.relu(red - blue - green - 0.99)
        return self.units(torch.stack([red, rare, blue], 1))


def test_what_a_reader_of_the_labels_should_know_is_said(tmp_path: Path) -> None:
    """Fewer exemplars than asked for, and images that use little of their bits: in run.json and on the screen."""
    photos = toys.make_photos(tmp_path / "photos", 24)
    for number in range(3):
        Image.new("RGB", (12, 12), (255, number, 0)).save(photos / f"pure-{number}.png")
        dark = np.arange(number, number + 144, dtype=np.uint16).reshape(12, 12)
        Image.fromarray(dark).save(photos / f"dark-{number}.png")
    run = toys.toy_run(photos, exemplars={"k": 5, "sample": 12})
    result = execute(run, tmp_path / "run", registry=toys.registry(), live=(Rare(), toys.preprocess))
    few = "1 unit has fewer than 5 exemplars, since no other probing image activates them: units/1 (3)"
    dark = "3 of 30 probing images use less than an eighth of their 16 or 32 bits, so that hardly anything can be seen"
    assert [note[: len(known)] for note, known in zip(result.notes, (few, dark), strict=True)] == [few, dark]
    assert len(result["units/1"].exemplars) == 3
    again = execute(run, tmp_path / "again", registry=toys.registry(), live=(Rare(), toys.preprocess))
    assert again.notes == result.notes, "from the store as well"
    screen = io.StringIO()
    show_result(Console(file=screen, width=200), result)
    assert all(f"Note: {note}." in screen.getvalue() for note in result.notes)


@pytest.mark.parametrize(
    ("n", "of", "said"),
    [(8, 8, "all 8 units"), (3, 8, "3 of 8 units"), (2048, 2048, "all 2,048 units; --units 0-19 takes some of them")],
)
def test_a_run_says_how_many_units_it_labels(n: int, of: int, said: str) -> None:
    assert _choice_of_units(n, of) == said
