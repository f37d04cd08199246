"""`dnd bench` over the toy world: what is shared, what goes on, what fails, and what the tables say."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import toys
from click.testing import CliRunner

from dnd import api
from dnd.bench.compare import measure
from dnd.bench.costs import costs, pareto
from dnd.bench.effects import effects
from dnd.bench.execute import run_matrix
from dnd.bench.matrix import Matrix, read_matrix
from dnd.bench.outcome import Outcome
from dnd.bench.page import _write_table, page
from dnd.bench.repeats import difference, level
from dnd.bench.table import columns, markdown, notes, rows, screen
from dnd.cli.main import cli
from dnd.config.tables import flatten
from dnd.errors import ModelError, UsageError
from dnd.evaluation.intervals import Estimate
from dnd.plugin.registry import Entry, Registry
from dnd.results.report.build import build_report
from dnd.results.run import RunFolder

TRUTH = {0: "red", 1: "green", 2: "blue"}


class Target(api.Target):
    name = "toy"

    def build(self) -> Any:
        return toys.Net(), toys.preprocess

    def grade(self, labels: Sequence[api.Label]) -> api.Grading:
        wrong = {
            str(label.unit): TRUTH.get(label.unit.index, "uninterpretable")
            for label in labels
            if (label.labels[0][0] if label.labels else None) != TRUTH.get(label.unit.index)
        }
        return api.Grading((api.Grade("colour", len(labels) - len(wrong), len(labels)),), wrong=wrong)


class Broken(api.Captioner):
    name = "broken"

    def load(self) -> None:
        raise ModelError("its weights are <b>gone</b> | lost")

    def caption(self, images: Sequence[Any]) -> list[str]:
        return []


class Backwards(toys.Scorer):
    """Prefers what drives a unit least."""

    name = "backwards"

    def score(self, evidence: Sequence[api.Evidence]) -> list[list[float]]:
        return [[-score for score in scores] for scores in super().score(evidence)]


def registry() -> Registry:
    more = {"target": Target, "captioner": Broken, "scorer": Backwards}
    own = [Entry(kind, cls.name, cls, "tests", "1", "ok") for kind, cls in more.items()]
    return Registry([*toys.registry().entries, *own])


BASE = """
device = "cpu"
[target]
name = "toy"
layers = ["units"]
[probing]
set = "{photos}"
[exemplars]
k = 4
sample = 12
[images]
n = 4
[captioner]
backend = "toy"
[summarizer]
backend = "toy"
[generator]
backend = "toy"
[scorer]
backend = "toy"
"""
GRID = """
base = "base.toml"
[axes.captioner]
plain = {}
loud = { captioner.suffix = "!" }
[axes.images]
two = { images.n = 2 }
four = {}
[axes.scorer]
toy = {}
backwards = { scorer.backend = "backwards" }
[[exclude]]
captioner = "loud"
scorer = "backwards"
"""


@pytest.fixture(autouse=True)
def mood(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    toys.MOOD.__init__()  # type: ignore[misc]
    monkeypatch.delenv("DND_STORE", raising=False)
    return


@pytest.fixture
def here(tmp_path: Path) -> Path:
    photos = toys.make_photos(tmp_path / "photos")
    (tmp_path / "base.toml").write_text(BASE.format(photos=photos))
    return tmp_path


def matrix(here: Path, text: str) -> Matrix:
    (here / "matrix.toml").write_text(text)
    return read_matrix(here / "matrix.toml")


def bench(here: Path, text: str, told: list[str] | None = None) -> list[Outcome]:
    def tell(number: int, of: int, name: str) -> None:
        if told is not None:
            told.append(name)

    return run_matrix(matrix(here, text), here / "out", registry(), tell)


def page_data(html: str) -> dict[str, Any]:
    """What the page draws."""
    found: dict[str, Any] = json.loads(re.findall(r'id="data">(.*?)</script>', html)[0])
    return found


def runs_of(data: dict[str, Any], name: str) -> list[str]:
    """The links of a combination."""
    cells = (row[1] for row in data["combinations"]["rows"])
    return next(cell["runs"] for cell in cells if cell["text"].removesuffix(" *") == name)  # type: ignore[no-any-return]


def computed(outcomes: Sequence[Outcome]) -> dict[str, int]:
    found: dict[str, int] = {}
    for outcome in outcomes:
        for name, stage in outcome.stages.items():
            found[name] = found.get(name, 0) + stage["computed"]
    return found


def test_a_grid_costs_its_distinct_stages(here: Path) -> None:
    """Six combinations of two captioners, two numbers of images and two scorers."""
    outcomes = bench(here, GRID)
    assert [outcome.name for outcome in outcomes] == [
        *("plain+two+toy", "plain+two+backwards", "plain+four+toy", "plain+four+backwards"),
        *("loud+two+toy", "loud+four+toy"),
    ]
    exemplars = 12  # of three units that are not silent, four each
    assert computed(outcomes) == {
        "exemplars": 4,
        "captions": 2 * exemplars,
        "concepts": 2 * 3,
        "images": 3 * 4,  # "two" takes the first two of the four
        "activations": 3 * 4,
        "scores": 2 * 2 * 3,  # the loud captions lead to the same evidence
    }
    assert sum(toys.MOOD.calls["images"]) == 12
    assert sum(toys.MOOD.calls["captions"]) == 24
    asked = [stage["items"] for outcome in outcomes for name, stage in outcome.stages.items() if name == "captions"]
    assert asked == [exemplars] * 6


def test_what_is_measured(here: Path) -> None:
    found = measure(bench(here, GRID), "plain+two+toy")
    assert found.metric == "match.graded"
    assert found.figures["match.graded"]["plain+two+toy"].value == 1
    assert found.figures["match.graded"]["plain+two+backwards"].value == 0.25  # the silent unit
    apart = found.against("plain+two+backwards")
    assert apart is not None
    assert (apart.estimate.value, apart.verdict) == (-0.75, "no difference shown")  # three of four units, by McNemar
    assert found.costs["plain+four+toy"].images == 12
    assert found.costs["plain+two+toy"].images == 6
    assert all(outcome.peak > 10e6 for outcome in found.outcomes)
    assert found.exit_code == 0
    record = found.record()
    assert record["stages"]["captions"] == {**record["stages"]["captions"], "keys": 2, "combinations": 6, "items": 72}


def test_a_truth_file_and_texts(here: Path) -> None:
    truth = "layer,unit,kind,concept\nunits,0,colour,a Red\nunits,1,colour,blue\nunits,3,noise,\n"
    (here / "truth.csv").write_text(truth)
    wanted = matrix(here, 'base = "base.toml"\n[axes.a]\none = {}\n')
    from dnd.bench.quality import Judge
    from dnd.pipeline.execute import execute

    judge = Judge(here / "truth.csv", None)
    values = judge.values(execute(wanted.combinations[0].run(registry()), here / "run", registry=registry()))
    assert values["match.exact_of_all"] == {"units/0": 1.0, "units/1": 0.0, "units/3": 1.0}
    (here / "other.csv").write_text(truth.replace("units,", "latents,"))
    values = Judge(here / "other.csv", None).values(RunFolder(here / "run"))
    assert set(values) == {"match.graded"}, "by the target, which knows the units that the file does not"


def test_it_goes_on_where_it_was(here: Path) -> None:
    def stop(number: int, of: int, name: str) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_matrix(matrix(here, GRID), here / "out", registry(), stop)
    told: list[str] = []
    outcomes = bench(here, GRID, told)
    assert told == ["plain+four+toy", "plain+four+backwards", "loud+two+toy", "loud+four+toy"]
    assert len(outcomes) == 6
    assert outcomes[0].stages["captions"]["computed"] == 12  # as it was the first time
    told.clear()
    again = bench(here, GRID.replace("images.n = 2", "images.n = 3"), told)
    assert told == ["plain+two+toy", "plain+two+backwards", "loud+two+toy"]
    assert again[0].stages["images"]["items"] == 9


def test_a_failed_combination_is_a_row(here: Path) -> None:
    text = 'base = "base.toml"\n[axes.captioner]\nbroken = { captioner.backend = "broken" }\ntoy = {}\n'
    found = measure(bench(here, text), "toy")
    assert [outcome.failed for outcome in found.outcomes] == [True, False]
    assert found.exit_code == 3
    assert rows(found)[-1] == ["", "broken", "failed: its weights are <b>gone</b> | lost"]
    shown = page(found, "<i>title</i>", here)
    assert "<b>gone" not in shown
    assert "<i>title" not in shown
    assert page_data(shown)["combinations"]["rows"][-1][2] == "failed: its weights are <b>gone</b> | lost"
    lines = [line for line in markdown(found, "t").splitlines() if line.startswith("| ")]
    cells = [line.replace("\\|", "").count("|") for line in lines]
    assert cells[:4] == [len(columns(found)) + 1] * 4


def test_without_a_truth_nothing_is_ranked_and_the_screen_has_no_empty_column() -> None:
    found = measure([Outcome("a", "k", seconds=2.0), Outcome("b", "k", seconds=1.0)], "a")
    assert found.metric is None
    assert screen(found) == (["no.", "combination", "seconds alone"], [["1", "a", "2.0"], ["2", "b", "1.0"]])
    assert any("nothing is ranked" in note for note in notes(found))


def test_failed_units_count(here: Path) -> None:
    toys.MOOD.fail_on = {"blue"}
    found = measure(bench(here, 'base = "base.toml"\n[axes.a]\none = {}\n'), "one")
    assert found.outcomes[0].counts["failed"] >= 1
    assert found.exit_code == 3


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "x: there is no such setting"),
        ("[axes.a]", "axes.a: it has no variants"),
        ("", "asks for no combination"),
        ('[axes.a]\n"../b" = {}', "is no name for a variant"),
        ('[axes.a]\nb = {}\n[[exclude]]\na = "c"', "exclude: a has no variant 'c'"),
        ('[axes.a]\nb = {}\n[[exclude]]\nd = "c"', "exclude: there is no axis 'd'"),
        ('reference = "z"\n[axes.a]\nb = {}', "reference: there is no combination 'z'"),
        ("[axes.a]\nb = {}\n[combinations.b]", "two combinations are called 'b'"),
        ('truth = "no.csv"\nencoder = "e"\n[axes.a]\nb = {}', "there is no file"),
        ('encoder = "e"\n[axes.a]\nb = {}', "truth and encoder go together"),
        ('[axes.a]\nb = {}\n[[exclude]]\na = "b"', "asks for no combination"),
        ("[axes", "is not TOML"),
    ],
)
def test_a_faulty_matrix_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        matrix(tmp_path, text)


def test_a_faulty_setting_is_refused_before_any_work(here: Path) -> None:
    with pytest.raises(UsageError, match=r"combination two: images\.m: there is no such setting"):
        bench(here, 'base = "base.toml"\n[axes.a]\none = {}\ntwo = { images.m = 3 }\n')
    assert not toys.MOOD.calls


def outcome(name: str, right: Sequence[float], **more: Any) -> Outcome:
    return Outcome(name, "k", values={"match.graded": {f"u/{i}": v for i, v in enumerate(right)}}, **more)


def test_comparisons_are_paired() -> None:
    """b is right on nine in ten of a's units and nowhere else: alone their intervals overlap, in pairs they do not."""
    a = [1.0] * 50 + [0.0] * 50
    b = [1.0] * 40 + [0.0] * 60
    found = measure([outcome("a", a), outcome("b", b), outcome("c", a)], "a")
    own, other = found.figures["match.graded"]["a"], found.figures["match.graded"]["b"]
    assert other.low < own.low < other.high
    apart, same = found.against("b"), found.against("c")
    assert apart is not None
    assert same is not None
    assert apart.verdict == "worse"
    assert apart.p == pytest.approx(3 * 2 * 0.5**10)  # ten units that differ, all one way; three pairs
    assert apart.estimate.value == pytest.approx(-0.1)
    assert same.verdict == "no difference shown"
    assert len(found.differences) == 3


def test_units_that_only_one_has_are_not_compared() -> None:
    found = measure([outcome("a", [1.0, 1.0, 0.0, 0.0]), outcome("b", [1.0, 1.0])], "a")
    apart = found.against("b")
    assert apart is not None
    assert (apart.estimate.value, apart.estimate.n) == (0, 2)


def test_combinations_without_a_unit_in_common_are_not_compared() -> None:
    others = Outcome("b", "k", values={"match.graded": {"latents/0": 1.0}})
    found = measure([outcome("a", [1.0, 0.0]), others, outcome("c", [1.0, 1.0])], "a")
    assert [(one.name, one.other) for one in found.differences] == [("a", "c")]
    assert found.against("b") is None
    assert found.figures["match.graded"]["b"].value == 1


def test_what_a_combination_would_cost_alone() -> None:
    def stage(key: str, items: int, done: int, seconds: float, **more: Any) -> dict[str, Any]:
        return {"key": key, "items": items, "computed": done, "failed": 0, "seconds": seconds, **more}

    first = {"captions": stage("c", 10, 10, 20.0), "images": stage("i", 100, 100, 50.0, used={"tokens": 500})}
    second = {"captions": stage("c", 10, 0, 0.5), "images": stage("i", 40, 20, 10.0, used={"tokens": 100})}
    third = {"captions": stage("from before", 10, 0, 0.5)}
    made = [
        outcome("first", [1.0], seconds=75.0, stages=first),
        outcome("second", [1.0], seconds=12.5, stages=second),
        outcome("third", [1.0], seconds=1.0, stages=third),
    ]
    found = costs(made)
    assert found["first"].alone == 75  # it computed all of its items itself
    assert found["second"].alone == pytest.approx(2 + 20 + 40 * 60 / 120)
    assert found["first"].tokens == 500
    assert found["second"].here == 12.5
    assert found["second"].tokens == 40 * 5
    assert found["third"].alone is None
    assert (found["second"].computed, found["second"].items) == (20, 50)


def test_the_front_holds_what_nothing_beats() -> None:
    points = [("cheap", 1.0, 0.5), ("good", 9.0, 0.9), ("worse", 9.0, 0.8), ("dear", 10.0, 0.9), ("middle", 5.0, 0.7)]
    assert pareto(points) == {"cheap", "middle", "good"}


def test_no_cell_of_its_csv_is_a_formula(tmp_path: Path) -> None:
    _write_table(tmp_path / "t", [{"combination": "=1+1", "label": None, "value": -0.5}])
    assert (tmp_path / "t.csv").read_text() == "combination,label,value\n'=1+1,,-0.5\n"
    assert pq.read_table(tmp_path / "t.parquet").column("combination").to_pylist() == ["=1+1"]


def test_the_command(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "load", registry)
    (here / "matrix.toml").write_text(GRID)
    monkeypatch.chdir(here)
    result = CliRunner().invoke(cli, ["bench", "matrix.toml", "--json"], standalone_mode=False)
    assert result.exception is None
    assert result.return_value == 0
    record = json.loads(result.stdout)
    assert record["reference"] == "plain+two+toy"
    assert [one["counts"]["labelled"] for one in record["combinations"]] == [3, 0, 3, 0, 3, 3]
    folder = here / "runs" / "bench-matrix"
    files = {"bench.json", "bench.csv", "bench.md", "bench.html", "runs"}
    assert {p.name for p in folder.iterdir()} >= files
    table = list(csv.DictReader((folder / "bench.csv").read_text("utf-8").splitlines()))
    assert [row["combination"] for row in table] == [one["name"] for one in record["combinations"]]
    assert (table[0]["captioner"], table[0]["labelled"], float(table[0]["match.graded"])) == ("plain", "3", 1.0)
    assert float(table[0]["seconds_per_right_label"]) == pytest.approx(float(table[0]["seconds_alone"]) / 4, abs=1e-3)
    assert json.loads((folder / "bench.json").read_text()) == record
    units = list(csv.DictReader((folder / "bench-units.csv").read_text("utf-8").splitlines()))
    assert len(units) == 6 * 4
    assert [units[0][name] for name in ("combination", "repeat", "unit", "label")] == [
        "plain+two+toy",
        "0",
        "units/0",
        "red",
    ]
    again = pq.read_table(folder / "bench-units.parquet").to_pylist()
    assert [one["match.graded"] for one in again] == [float(one["match.graded"]) for one in units]
    assert pq.read_table(folder / "bench.parquet").column("seconds_alone")[0].as_py() == float(
        table[0]["seconds_alone"]
    )
    data = page_data((folder / "bench.html").read_text("utf-8"))
    assert [one["number"] for one in data["points"]] == [1, 2, 3, 4, 5, 6]
    assert data["axes"][0] == "scorer", "the axis that matters most"
    assert [set(one["variants"]) for one in data["points"]] == [{"captioner", "images", "scorer"}] * 6
    assert data["combinations"]["rows"][0][2] == {"text": "1.000 [0.510, 1.000]", "value": [1.0, 0.510109, 1.0]}
    assert runs_of(data, "plain+two+toy") == ["runs/plain%2Btwo%2Btoy/"]
    build_report([RunFolder(folder / "runs" / "plain+two+toy")], progress=lambda n: None)
    again = CliRunner().invoke(cli, ["bench", "matrix.toml"], standalone_mode=False)
    assert again.exception is None
    data = page_data((folder / "bench.html").read_text("utf-8"))
    assert runs_of(data, "plain+two+toy") == ["runs/plain%2Btwo%2Btoy/report/index.html"]
    words = ["bench", "matrix.toml", "--only", "loud+two+toy", "--dry-run"]
    planned = CliRunner().invoke(cli, words, standalone_mode=False).stdout
    assert "loud+two+toy" in planned
    assert "plain+two+toy" not in planned
    assert matrix(here, GRID).only(["loud+two+toy"]).reference == "loud+two+toy"
    with pytest.raises(UsageError, match="no combination 'loud'"):
        matrix(here, GRID).only(["loud"])


# --- repeats and main effects ---


def test_each_combination_is_repeated_with_the_next_seeds(here: Path) -> None:
    text = f"repeats = 3\n{GRID}"
    told: list[str] = []
    outcomes = bench(here, text, told)
    assert told[:7] == [*(one.name for one in outcomes[:6]), "plain+two+toy@1"]
    runs = [RunFolder(here / "out" / "runs" / name).settings["seed"] for name in ("plain+two+toy", "plain+two+toy@2")]
    assert runs[1] - runs[0] == 2
    found = measure(outcomes, "plain+two+toy")
    assert [len(own) for own in found.runs.values()] == [3] * 6
    assert found.repeats == 3
    assert found.outcomes[0].counts == {"labelled": 9, "uninterpretable": 3, "failed": 0}
    assert found.right("plain+two+toy") == 4
    assert found.figures["match.graded"]["plain+two+toy"].n == 4
    assert any("run 3 times, with other seeds" in note for note in notes(found))
    told.clear()
    bench(here, GRID, told)
    assert told == [], "the first runs are those without repeats"


def test_an_interval_over_units_and_seeds_holds_the_truth() -> None:
    """Shares with an effect of the unit and one of the seed, which the mean over both does not have: the interval over
    units alone misses it far more often than one time in twenty."""
    rng = np.random.default_rng(0)
    held = alone = 0
    for _ in range(400):
        units, seeds = rng.normal(0, 1, (60, 1)), rng.normal(0, 0.5, (1, 5))
        values = (rng.random((60, 5)) < 1 / (1 + np.exp(-units - seeds))).astype(float)
        both, first = level(values), level(values[:, :1])
        held += both.low <= 0.5 <= both.high
        alone += first.low <= 0.5 <= first.high
    assert held / 400 > 0.93
    assert alone / 400 < 0.85


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_same_of_every_unit_and_seed_is_still_uncertain(value: float) -> None:
    found = level(np.full((20, 3), value))
    assert found.value == value
    assert found.high - found.low == pytest.approx(0.16, abs=0.01)  # Wilson's of 20 units


def test_a_difference_is_paired_by_unit_and_seed() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 5, (30, 4))  # of unit and seed together, the same for both
    estimate, p = difference(hard + 0.5 + rng.normal(0, 0.1, hard.shape), hard)
    assert estimate.low < 0.5 < estimate.high < 0.6
    assert p < 1e-4
    assert difference(hard, hard) == (Estimate(0, 0, 0, 30), 1.0)


def test_a_main_effect_is_taken_over_the_other_axes() -> None:
    """b adds 0.2 whatever the other axis; what only one of the two was run with does not count."""
    rng = np.random.default_rng(2)
    base = rng.random((40, 1))
    values = {"a+x": base, "b+x": base + 0.2, "a+y": base + 0.5, "b+y": base + 0.7, "b+z": base + 9}
    variants = {name: dict(zip(("one", "two"), name.split("+"), strict=True)) for name in values}
    found = {(e.axis, e.variant): e for e in effects(values, variants, {"one": "a", "two": "y"})}
    own = found["one", "b"]
    assert (own.base, own.combinations) == ("a", 2)
    assert own.estimate.value == pytest.approx(0.2)
    assert own.mean == pytest.approx(base.mean() + 0.45)
    assert own.p < 1e-6
    assert found["two", "x"].estimate.value == pytest.approx(-0.5)
    assert found["two", "z"].combinations == 1
    assert set(found) == {("one", "b"), ("two", "x"), ("two", "z")}


def test_the_matrix_of_the_benchmarks_fits_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(__file__).parents[2] / "benchmarks" / "matrix.toml"
    wanted = read_matrix(file)
    monkeypatch.chdir(tmp_path)
    toys.make_photos(tmp_path / "runs" / "scenes", 1)
    runs = [one.run(Registry.load()) for one in wanted.combinations]
    assert len(runs) >= 12
    assert len({json.dumps(run.to_dict(), sort_keys=True) for run in runs}) == len(runs)


def test_the_matrix_of_the_guide_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "bench.md").read_text("utf-8")
    (tmp_path / "truth.csv").write_text("unit,text\n0,red\n")
    wanted = matrix(tmp_path, re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[0])
    names = [one.name for one in wanted.combinations]
    assert names == ["llama+coverage", "llama+mean", "words+coverage", "clip-dissect"]
    assert [one.run(Registry.load()).scorer.name for one in wanted.combinations[1:3]] == ["mean", "coverage"]


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": []}}, "e": "f"}) == {"a.b": 1, "a.c.d": [], "e": "f"}
