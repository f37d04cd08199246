"""The report's folder: what is in it, what it survives, and what it never does."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reports
import toys
from blobs import SIZE, Blobs, network, preprocess
from click.testing import CliRunner
from finished import finish
from PIL import Image

from dnd.api import FRAME, Unit
from dnd.cli.main import cli
from dnd.config.run import Exemplars
from dnd.errors import DndError, StoreError, UsageError
from dnd.pipeline.execute import execute
from dnd.pipeline.exemplars.boxes import attention_boxes
from dnd.pipeline.exemplars.find import find_exemplars
from dnd.results.report.build import Report, build_report
from dnd.results.report.overview import histogram
from dnd.results.report.rows import kind_of_reason
from dnd.results.run import RunFolder
from dnd.results.unit import ActivationMap, baseline
from dnd.store.images import Store
from dnd.target.attention import small_map
from dnd.target.hooked import HookedTarget


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DND_STORE", raising=False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return reports.small_run(tmp_path / "run")


def build(*folders: Path, out: Path | None = None) -> Report:
    return build_report([RunFolder(folder) for folder in folders], out, progress=lambda n: None)


def read(report: Path, file: str = "data.js") -> Any:
    """What a data file gives to the page."""
    text = (report / file).read_text("ascii")
    found = re.fullmatch(r"dnd\.(?:index|evidence)\((.*)\);\n", text, re.DOTALL)
    assert found
    return json.loads(f"[{found[1]}]")


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- what is in it -----------------------------------------------------------------------------------


def test_the_index_has_a_row_per_unit(run: Path) -> None:
    report = build(run)
    assert (report.page, report.units, report.missing.count) == (run / "report" / "index.html", 6, 0)
    (index,) = read(run / "report")
    assert [(row["layer"], row["unit"], row["runs"][0]["status"]) for row in index["units"]] == [
        ("a", 0, "labelled"), ("a", 1, "labelled"), ("a", 2, "labelled"),
        ("b", 3, "uninterpretable"), ("b", 4, "labelled"), ("b", 5, "failed"),
    ]  # fmt: skip
    assert index["units"][1]["runs"][0]["labels"] == [["green", 0.8973], ["disc", 0.1994]]
    assert [row["runs"][0]["truth"] for row in index["units"][:3]] == [
        None,
        {"kind": "", "right": False, "meant": "teal"},
        None,
    ]
    assert "a green disc, number 3" in index["units"][1]["runs"][0]["text"]
    (about,) = index["runs"]
    assert about["statuses"] == {"labelled": 4, "uninterpretable": 1, "failed": 1}
    assert about["quality"] == {"grades": [["single", 2, 3]], "controls": [["one constant label, the best", 0.125]]}
    assert ["uninterpretable", "images of … drive it little more than random ones", 1] in about["reasons"]
    assert [name for name, _ in about["settings"]] == ["target", "captioner", "run"]
    assert about["models"] == [["blip2", "ab" * 32]]


def test_a_refined_unit_has_all_it_means_and_its_rounds(tmp_path: Path) -> None:
    store = Store(tmp_path / ".dnd-store")
    both, one = (reports.unit(store, "a", index, "red") for index in range(2))
    refined = [{**both, "meanings": ["red", "<b>"], "history": [["red"]]}, {**one, "meanings": ["red"]}]
    run = reports.make_run(tmp_path / "run", refined)
    build(run)
    (index,) = read(run / "report")
    assert [row["runs"][0]["meaning"] for row in index["units"]] == ["red | <b>", None]
    _, units = read(run / "report", "units/0.js")
    assert [evidence["rounds"] for (evidence,) in units] == [["red", "red | <b>"], ["red"]]


def test_the_evidence_is_ranked_and_its_images_are_there(run: Path) -> None:
    build(run)
    number, units = read(run / "report", "units/0.js")
    assert (number, len(units)) == (0, 6)
    (evidence,) = units[0]
    assert [c["concept"] for c in evidence["candidates"]] == ["red", "disc"]
    assert [activation for _, activation in evidence["candidates"][0]["images"]] == [1.5, 1.0, 0.5]
    first = evidence["exemplars"][0]
    assert (first["box"], len(first["boxes"]), first["map"]["shape"]) == ([0.1, 0.2, 0.6, 0.8], 2, [8, 8])
    names = [copy[0] for e in evidence["exemplars"] for copy in (e["image"], e["view"]) if copy]
    for name, size in zip(names, [(48, 36), (96, 72), (96, 72), (96, 72), (96, 72)], strict=True):
        with Image.open(run / "report" / "images" / f"{name}.jpg") as image:
            assert image.size == size
    wanted = reports.picture("red", 0, 48)
    with Image.open(run / "report" / "images" / f"{names[0]}.jpg") as image:
        assert np.abs(np.asarray(image, float) - np.asarray(wanted, float)).mean() < 6


def test_large_images_have_two_copies_and_like_images_one(tmp_path: Path) -> None:
    store = Store(tmp_path / ".dnd-store")
    record = reports.unit(store, "a", 0, "red")
    large = store.put_image(reports.picture("blue", 1, 1600)).digest
    for exemplar in record["exemplars"][1:]:
        exemplar["image"] = large
    run = reports.make_run(tmp_path / "run", [record])
    build(run)
    sizes = {}
    for file in (run / "report" / "images").iterdir():
        with Image.open(file) as image:
            sizes[file.stem.partition("-")[2], max(image.size)] = sizes.get((file.stem, max(image.size)), 0) + 1
    assert sizes[("large", 640)] == 1
    assert sizes[("", 256)] == 1
    (_, units) = read(run / "report", "units/0.js")
    assert [e["image"][3] for e in units[0][0]["exemplars"]] == [0, 1, 1, 1]


def test_the_same_run_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    build(run, out=tmp_path / "one")
    build(run, out=tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / ".dnd-store")
    other = reports.make_run(
        tmp_path / "other", [reports.unit(store, "a", 1, "blue"), reports.unit(store, "a", 0, "red"),
                             reports.unit(store, "c", 9, "red")]
    )  # fmt: skip
    build(run, other, out=tmp_path / "both")
    (index,) = read(tmp_path / "both")
    rows = {(row["layer"], row["unit"]): row for row in index["units"]}
    assert list(rows)[-1] == ("c", 9)
    assert [about["name"] for about in index["runs"]] == ["run", "other"]
    assert (rows["a", 0]["differs"], rows["a", 1]["differs"], rows["c", 9]["differs"]) == (False, True, False)
    assert rows["c", 9]["runs"][0] is None
    assert rows["a", 1]["runs"][1]["labels"][0][0] == "blue"


def test_a_pipeline_run_of_either_kind_can_be_shown(tmp_path: Path) -> None:
    """Units without candidates, silent ones, and a sample in each; whatever the method."""
    photos = toys.make_photos(tmp_path / "photos")
    execute(toys.toy_run(photos), tmp_path / "run", registry=toys.registry(), live=(toys.Net(), toys.preprocess))
    build(tmp_path / "run")
    (index,) = read(tmp_path / "run" / "report")
    assert [row["runs"][0]["status"] for row in index["units"]] == ["labelled"] * 3 + ["uninterpretable"]
    assert index["missing"] == [0, ""]
    _, units = read(tmp_path / "run" / "report", "units/0.js")
    assert all(unit[0]["sample"]["n"] == 12 for unit in units)
    assert units[3][0]["candidates"] == []
    red = units[0][0]
    assert sum(red["sample"]["counts"]) == 12
    assert all(exemplar["activation"] >= red["sample"]["p95"] * 0.9 for exemplar in red["exemplars"])


# --- what a run keeps for it -------------------------------------------------------------------------


def test_exemplars_know_what_the_unit_looked_at(tmp_path: Path) -> None:
    probing, store = Blobs(), Store(tmp_path / "store")
    with HookedTarget(network(), preprocess, ["2", "5"]) as hooked:
        result = find_exemplars(
            hooked, probing, [Unit("2", 0), Unit("2", 4), Unit("5", 0)], Exemplars(k=5, sample=7), store, "key",
            seed=0, batch_size=16, progress=lambda n: None, workers=2, pool=12,
        )  # fmt: skip
    exemplars = [e for index in (0, 4) for e in result.exemplars[Unit("2", index)]]
    assert any(e.box for e in exemplars)
    for index in (0, 4):
        for e in result.exemplars[Unit("2", index)]:
            source = probing.open(int(e.source[:3]))
            values = network()[:3](preprocess(source)[None])[0, index].detach().numpy()
            assert e.map
            assert e.map == ActivationMap.of(small_map(values), e.map.frame)
            assert e.map.frame == pytest.approx((0, 0, 1, 1), abs=0.03)
            assert (e.box is None) == (e.view is None)
            if e.box:
                assert e.box in e.boxes
                assert np.array_equal(store.picture(e.view).open(), source)
            if e.boxes:
                assert len(e.boxes) == len(attention_boxes(values, (SIZE, SIZE)))
    assert all(e.map is None and not e.boxes for e in result.exemplars[Unit("5", 0)])


def test_maps_are_kept_small() -> None:
    values = np.array([[-3.0, 1.0], [0.0, -1.0]], np.float32)
    small = small_map(values)
    assert small is not None
    assert small.tolist() == [[0, 255], [191, 128]]
    assert ActivationMap.of(small, FRAME).model_dump() == {"shape": (2, 2), "frame": FRAME, "cells": "AP+/gA=="}
    assert np.shape(small_map(np.arange(64 * 32, dtype=np.float32).reshape(64, 32))) == (16, 16)
    assert small_map(np.ones((3, 3), np.float32)) is None
    assert small_map(np.array([[np.nan, 1]], np.float32)) is None


def test_the_baseline_of_activations_as_large_as_floats_are() -> None:
    top = np.finfo(np.float32).max
    found = baseline(np.array([-top, 0, top, np.inf], np.float32))
    assert found is not None
    assert list(base64.b64decode(found.cells)) == [0, 128, 255, 0]
    assert (found.low, found.high, sum(found.counts)) == (-3.403e38, 3.403e38, 3)


def test_the_baseline_in_a_few_numbers() -> None:
    found = baseline(np.array([0, 0, 0, 1, np.nan, np.inf], np.float32))
    assert found
    assert (found.n, found.low, found.high, found.median) == (4, 0, 1, 0)
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (3, 1, 4)
    same = baseline(np.full(5, 2, np.float32))
    assert same
    assert same.counts == (5,)
    assert set(base64.b64decode(same.cells)) == {0}
    assert baseline(np.array([np.nan], np.float32)) is None
    assert list(base64.b64decode(found.cells)) == [0, 0, 0, 255, 0, 0]
    values = np.array([5, np.nan, *range(5), *range(6, 100)], np.float32)
    shown = baseline(values, [f"{n:064x}" for n in range(len(values))])
    assert shown
    assert [(one.activation, one.quantile) for one in shown.images] == [
        (10, 0.1), (50, 0.5), (74, 0.75), (89, 0.9), (94, 0.95), (98, 0.99)
    ]  # fmt: skip
    assert int(shown.images[0].digest, 16) == 11, "the image with that activation"


def test_an_atlas_knows_like_units(tmp_path: Path) -> None:
    store, rng = Store(tmp_path / ".dnd-store"), np.random.default_rng(0)
    base = rng.random((3, 200))
    records = []
    for index in range(12):
        record = reports.unit(store, "a", index, ("red", "green", "blue")[index % 3])
        found = baseline((base[index % 3] + 0.2 * rng.random(200)).astype(np.float32))
        assert found
        records.append({**record, "sample": found.model_dump(mode="json")})
    build(reports.make_run(tmp_path / "run", records))
    (index_,) = read(tmp_path / "run" / "report")
    for one in index_["atlas"]:
        assert len({tuple(cell) for cell in one["cells"]}) == 12
        for place, near in enumerate(one["near"]):
            assert {other % 3 for other, _ in near[:3]} == {place % 3}, one["name"]
            assert place not in [other for other, _ in near]
            assert 0.9 < near[0][1] <= 1.01
    assert [one["name"] for one in index_["atlas"]] == ["label", "activation"]
    cells = np.array(index_["atlas"][1]["cells"])
    apart = np.linalg.norm(cells[:, None] - cells[None], axis=-1)
    like = np.arange(12)[:, None] % 3 == np.arange(12)[None] % 3
    assert apart[like & (apart > 0)].mean() < 0.8 * apart[~like].mean()


# --- what it survives --------------------------------------------------------------------------------


def test_images_that_are_gone_or_damaged_are_left_out_and_counted(run: Path, tmp_path: Path) -> None:
    images = sorted((tmp_path / ".dnd-store" / "images").rglob("*.png"))
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:60])
    report = build(run)
    assert report.missing.count == 2
    (index,) = read(run / "report")
    assert index["missing"][0] == 2
    assert ".png" in index["missing"][1]

    shutil.rmtree(tmp_path / ".dnd-store")
    done = CliRunner().invoke(cli, ["report", str(run)])
    assert done.exit_code == 0
    assert "6 units" in done.stdout
    assert re.search(r"Images that are not in the report: \d+, the first because: .*\.png is gone\n", done.stderr)
    assert "DND_STORE=FOLDER" in done.stderr


def line(**changes: Any) -> str:
    """A unit that failed, as labels.jsonl has it, but for some changes."""
    plain = {"layer": "a", "unit": 0, "status": "failed", "labels": [], "reason": "", "exemplars": []}
    return json.dumps({**plain, "candidates": [], **changes})


EXEMPLAR = {"image": "ab" * 32, "activation": 1, "source": ""}


@pytest.mark.parametrize(
    ("damaged", "word"),
    [
        ("{", "JSON"),
        ("[1]", "object"),
        ("\udcff", "JSON"),
        ("[" * 100_000, "recursion"),
        ('{"a":' * 100_000, "recursion"),
        (line(reason="\ud800"), "JSON"),
        (line(unit=-1), "unit"),
        (line(unit=2**31), "unit"),
        (line(unit=True), "unit"),
        (line().replace("0", "9" * 5000, 1), "JSON"),
        (line(status="labelled"), "without a label"),
        (line(status="<script>"), "status"),
        (line(labels=[{"concept": "x", "score": 1.0}] * 4), "labels"),
        (line(exemplars=[{**EXEMPLAR, "image": "../../etc/passwd"}]), "image"),
        (line(exemplars=[{**EXEMPLAR, "image": 3}]), "image"),
        (line(exemplars=[{**EXEMPLAR, "image": "ab" * 32 + "\n"}]), "image"),
        (line(exemplars=[{**EXEMPLAR, "view": "../" * 22}]), "view"),
        (line(exemplars=[{**EXEMPLAR, "box": [0, 0, math.nan, 1]}]), "box"),
        (line(candidates=[{"concept": "x", "images": [{"image": "/" * 64, "activation": 1}]}]), "image"),
        (line(sample={"n": 1, "low": 0, "high": 1, "median": 0, "p95": 1, "counts": [10**400]}), "counts"),
    ],
)
def test_a_damaged_line_is_named(run: Path, damaged: str, word: str) -> None:
    with (run / "labels.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(damaged + "\n")
    with pytest.raises(StoreError, match=r"line 7 of .*labels.jsonl is damaged.*") as caught:
        build(run)
    assert word.lower() in str(caught.value).lower()
    assert caught.value.hint


@pytest.mark.parametrize("name", ["run.json", "run.toml", "evaluation.json"])
def test_facts_that_cannot_be_read_are_named(run: Path, name: str) -> None:
    (run / name).write_bytes(b"\xff{")
    with pytest.raises(StoreError, match=name):
        build(run)


def test_facts_of_any_shape_make_a_report(run: Path) -> None:
    odd = [{}, {"truth": [], "stages": 3, "models": None, "probing": "x", "hardware": [], "versions": {"a": [1]}},
           {"truth": {"grades": [{}, 3], "controls": 1}, "stages": {"x": 1}, "seconds": None},
           {"truth": {"grades": 5}, "hardware": {"devices": 5}}]  # fmt: skip
    nothing = {"own": {"value": [math.nan], "low": {"x": math.inf}, "high": "<b>"}}
    for facts in odd:
        (run / "run.json").write_text(json.dumps(facts))
        (run / "evaluation.json").write_text(
            json.dumps({"figures": {"x": {"own": 3}, "y": {"own": {"value": 1.0}}, "z": nothing}})
        )
        build(run)
        (index,) = read(run / "report")
        assert index["runs"][0]["figures"][1] == ["y", True, 1.0, None, None, None, None]


def test_numbers_that_are_none_and_endless_texts(tmp_path: Path) -> None:
    record = reports.unit(Store(tmp_path / ".dnd-store"), "a", 0, "red")
    record["labels"][0]["score"] = float("nan")
    record["exemplars"][0]["activation"] = float("inf")
    record["exemplars"][1]["caption"] = None
    record["exemplars"][2]["caption"] = "word " * 100_000
    run = reports.make_run(tmp_path / "run", [record])
    build(run)
    (index,) = read(run / "report")
    assert index["units"][0]["runs"][0]["labels"][0] == ["red", None]
    assert len(index["units"][0]["runs"][0]["text"]) < 5000
    _, units = read(run / "report", "units/0.js")
    assert units[0][0]["exemplars"][0]["activation"] is None


def test_folders_that_hold_no_run(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = CliRunner().invoke(cli, ["report", str(tmp_path / "empty")])
    assert isinstance(done.exception, UsageError)
    assert "labels.csv" in str(done.exception)
    (run / "labels.jsonl").unlink()
    with pytest.raises(UsageError, match=r"not finished: it has no labels\.jsonl") as caught:
        build(run)
    assert "goes on" in caught.value.hint
    reports.make_run(tmp_path / "none", [])
    with pytest.raises(UsageError, match="no units"):
        build(tmp_path / "none")


def test_only_a_report_is_replaced_and_only_by_a_whole_one(run: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a report"):
        build(run, out=precious)
    with pytest.raises(UsageError, match="not a report"):
        build(run, out=precious / "thesis.txt")
    assert (precious / "thesis.txt").read_text() == "years of work"

    build(run)
    before = files(run / "report")

    def stop(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_report([RunFolder(run)], progress=stop)
    assert files(run / "report") == before
    assert {path.name for path in run.iterdir()} == {"labels.csv", "labels.jsonl", "run.json", "run.toml", "report"}

    (run / "labels.jsonl").write_text((run / "labels.jsonl").read_text().splitlines()[0] + "\n")
    build(run)
    assert len(read(run / "report")[0]["units"]) == 1


def test_a_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DndError, match="file"):
        build(run, out=tmp_path / "file" / "report")


# --- what it never does ------------------------------------------------------------------------------


def test_texts_are_data_whatever_they_say(tmp_path: Path) -> None:
    run = reports.hostile_run(tmp_path / "run")
    build(run)
    for file in [run / "report" / "data.js", *(run / "report" / "units").iterdir()]:
        assert b"<" not in file.read_bytes()
    (index,) = read(run / "report")
    assert [row["runs"][0]["labels"][0][0] for row in index["units"]] == list(reports.HOSTILE.values())
    assert all(re.fullmatch(r"[0-9a-f]{24}", file.stem) for file in (run / "report" / "images").iterdir())


def test_the_page_needs_nothing_from_elsewhere_and_draws_no_markup(run: Path) -> None:
    build(run)
    page = (run / "report" / "index.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'self' file:;")
    assert "unsafe" not in policy[1]
    assert "http" not in policy[1]
    assert not re.search(r"<script(?![^>]*src)|<style| style=| on[a-z]+=", page)
    static = [file for file in (run / "report").iterdir() if file.suffix in (".js", ".css") and file.name != "data.js"]
    assert len(static) >= 8
    for file in static:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(", text
        ), file


def test_small_helpers() -> None:
    assert histogram([0, 1, 1], (0, 1))["counts"][-1] == 2
    assert histogram([2, 2])["counts"] == [2]
    assert kind_of_reason("'x' is 0.51 < 0.70") == kind_of_reason("'yy' is 0.3 < 0.70")
    assert kind_of_reason("'x' is too likely to be wrong: confidence 0.3 < 0.40") == "… is too likely to be wrong"
    assert base64.b64decode(reports.cells())[:2] == bytes([255, 218])


def test_runs_that_read_a_layer_in_several_ways_are_not_compared_without_a_word(tmp_path: Path) -> None:
    """The fifth latent and the fifth channel have the same name."""
    runs = [finish(tmp_path / name, {"fc/0": ["lake"]}) for name in "abc"]
    for folder, reading in zip(runs, ("units = axis 1 (64)", "units = axis 1 (64 latents of sae)"), strict=False):
        (folder / "run.json").write_text(json.dumps({"layers": {"fc": reading}}))
    told = "Layer fc is read in several ways"
    assert told in CliRunner().invoke(cli, ["report", *map(str, runs)]).stderr
    assert told not in CliRunner().invoke(cli, ["report", str(runs[0]), str(runs[2])]).stderr


def test_the_command_says_what_it_built_or_only_the_mistake(run: Path) -> None:
    one = reports.make_run(run.parent / "one", [reports.unit(Store(run.parent / ".dnd-store"), "a", 0, "red")])
    assert CliRunner().invoke(cli, ["report", str(one)]).stdout == f"1 unit: {one / 'report' / 'index.html'}\n"
    (one / "labels.jsonl").unlink()
    done = CliRunner().invoke(cli, ["report", str(one)])
    assert isinstance(done.exception, UsageError)
    assert done.output == "", "no bar of a report that was never begun"


def test_building_needs_no_heavy_library(run: Path) -> None:
    code = (
        "import sys\nfrom dnd.cli.main import main\n"
        f"try: main(['report', {str(run)!r}])\nexcept SystemExit as e: assert not e.code, e.code\n"
        "print(*{'torch', 'pyarrow', 'skimage', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"6 units: {run / 'report' / 'index.html'}", ""]
