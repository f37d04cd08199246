"""Confidence: curves from score to probability, what they refuse, and what a run makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd import api
from dnd.api import Unit
from dnd.cli.main import cli
from dnd.config.calibration import Calibration, CalibrationFile, Fitted, absolute, read_off
from dnd.config.read import build_run, read_run
from dnd.errors import UsageError
from dnd.evaluation.calibrate import fit_isotonic, fit_platt, judge
from dnd.evaluation.crossvalidate import crossed
from dnd.evaluation.intervals import wilson
from dnd.evaluation.reliability import reliability
from dnd.pipeline.choose import choose
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.results.run import open_run
from dnd.results.write import CSV_COLUMNS
from dnd_microworld import LAST_SEED, planted, target_model

UNIT = Unit("l", 0)
FITTED = Fitted(kind="platt", version="0", date="2026-01-01", sources=())
HALF = Calibration(scorer={"backend": "toy"}, first=((0.0, 0.0), (1.0, 1.0)), later=((0.0, 0.2),), fitted=FITTED)


def write(file: Path, **changed: object) -> Path:
    file.write_text(json.dumps({**HALF.model_dump(mode="json"), **changed}))
    return file


# --- curves ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=10, max_size=60))
@settings(max_examples=40)
def test_curves_rise_and_stay_inside_0_and_1(points: list[tuple[float, bool]]) -> None:
    scores, right = np.array([p[0] for p in points]), np.array([float(p[1]) for p in points])
    for curve in (fit_platt, fit_isotonic):
        knots = curve(scores, right)
        Calibration(scorer={}, first=knots, later=knots, fitted=FITTED)  # checks both
        assert 0 <= knots[0][1] <= knots[-1][1] <= 1


def test_platt_finds_the_sigmoid_that_drew_the_outcomes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 4000)
    truth = 1 / (1 + np.exp(-(10 * scores - 4)))
    knots = fit_platt(scores, (rng.uniform(size=4000) < truth).astype(float))
    for score in (0.2, 0.4, 0.7):
        assert read_off(knots, score) == pytest.approx(1 / (1 + np.exp(-(10 * score - 4))), abs=0.04)


def test_platt_is_not_surer_than_its_few_examples_allow() -> None:
    knots = fit_platt(np.repeat([0.0, 1.0], 5), np.repeat([0.0, 1.0], 5))
    assert (knots[0][1], knots[-1][1]) == pytest.approx((1 / 7, 6 / 7), abs=1e-3)


def test_isotonic_pools_what_falls_and_smooths_shares_of_few() -> None:
    knots = fit_isotonic(np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 0, 1]))
    assert knots == ((1.0, 0.33333), (2.5, 0.5), (4.0, 0.66667))


@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
@pytest.mark.parametrize(("scale", "offset"), [(1e-9, 0.0), (1e-7, 0.25), (1e9, 0.0)])
def test_scores_of_any_size_keep_their_order(fit: Any, scale: float, offset: float) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(300)
    right = (rng.random(300) < scores).astype(float)
    knots = fit(offset + scale * scores, right)
    known = fit(scores, right)
    for score in (0.1, 0.5, 0.9):
        assert read_off(knots, offset + scale * score) == pytest.approx(read_off(known, score), abs=0.01)
    assert read_off(knots, offset + scale * 0.9) > read_off(knots, offset + scale * 0.1) + 0.5
    assert len(fit(np.full(20, 0.3), right[:20])) == 1  # one score for all: one knot


def test_the_first_label_and_later_ones_have_curves_of_their_own() -> None:
    assert HALF.confidences([0.75, 0.5, 0.25]) == (0.75, 0.2, 0.2)
    assert HALF.confidences([7.0]) == (1.0,)
    assert HALF.confidences([]) == ()


# --- figures -----------------------------------------------------------------------------------------


def test_calibration_error_is_the_gap_and_brier_the_square() -> None:
    sure = np.array([0.95] * 10 + [0.05] * 10)
    good = reliability(sure, np.array([1.0] * 10 + [0.0] * 10))
    bad = reliability(sure, np.array([0.0] * 10 + [1.0] * 10))
    assert (good.ece.value, bad.ece.value) == (pytest.approx(0.05), pytest.approx(0.95))
    assert (good.brier.value, good.constant_brier) == (pytest.approx(0.0025), 0.25)
    assert good.brier.high < good.constant_brier < bad.brier.low
    assert [(b.n, b.right.value) for b in bad.bins] == [(10, 1.0), (10, 0.0)]
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    assert 0.6 < wilson(10, 10)[0] < 0.9
    (last,) = reliability(np.ones(4), np.array([1.0, 1, 1, 0])).bins
    assert (last.low, last.high, last.n, last.right.value) == (0.9, 1.0, 4, 0.75)


def test_calibration_error_stands_beside_that_of_chance() -> None:
    """Of true confidences the error lies where chance puts it, of false ones above; with few labels chance alone is
    not small."""
    rng = np.random.default_rng(2)
    sure = rng.random(60)
    true = reliability(sure, (rng.random(60) < sure).astype(float))
    assert true.ece_by_chance.value > 0.05
    assert true.ece_by_chance.low <= true.ece.value <= true.ece_by_chance.high
    false = reliability(np.full(60, 0.9), (rng.random(60) < 0.5).astype(float))
    assert false.ece.value > false.ece_by_chance.high
    assert reliability(np.full(60, 0.9), np.ones(60)).ece_by_chance.value == pytest.approx(
        np.mean(np.abs(rng.binomial(60, 0.9, 20_000) / 60 - 0.9)), abs=0.002
    )


def test_labels_of_one_unit_are_drawn_together() -> None:
    """Two labels of each unit that are always alike are no more evidence than one of them."""
    rng = np.random.default_rng(3)
    sure, right = rng.random(50), (rng.random(50) < 0.5).astype(float)
    one = reliability(sure, right).brier
    twice = reliability(np.repeat(sure, 2), np.repeat(right, 2), np.repeat(np.arange(50), 2)).brier
    apart = reliability(np.repeat(sure, 2), np.repeat(right, 2)).brier
    assert twice.high - twice.low == pytest.approx(one.high - one.low, rel=0.05)
    assert apart.high - apart.low < 0.8 * (one.high - one.low)


# --- labels ------------------------------------------------------------------------------------------


def test_a_label_too_likely_wrong_is_not_given_and_keeps_its_confidence() -> None:
    kept = choose(UNIT, {"a": 0.6, "b": 0.4}, {"a": 1.0, "b": 1.0}, min_auc=0.7, calibration=HALF, min_confidence=0.5)
    assert (kept.status, kept.confidences) == ("labelled", (0.6, 0.2))
    weak = choose(UNIT, {"a": 0.4, "b": 0.3}, {"a": 1.0, "b": 1.0}, min_auc=0.7, calibration=HALF, min_confidence=0.5)
    assert (weak.status, weak.confidences) == ("uninterpretable", (0.4, 0.2))
    assert "'a' is too likely to be wrong: confidence 0.40 < 0.50" in weak.reason


def test_a_run_gives_confidence_in_its_evidence_and_leaves_the_table_alone(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos")
    curve = ((0.5, 0.1), (1.0, 0.9))
    file = write(tmp_path / "c.json", scorer={"backend": "toy"}, first=curve)
    run = toys.toy_run(photos, labels={"calibration": str(file), "min_confidence": 0.6})
    result = execute(run, tmp_path / "run", registry=toys.registry(), live=(toys.Net(), toys.preprocess))
    lines = [json.loads(line) for line in (tmp_path / "run" / "labels.jsonl").read_text().splitlines()]
    for line in lines[:3]:
        first, *later = line["labels"]
        assert first["confidence"] == pytest.approx(read_off(curve, first["score"]), abs=1e-3)
        assert [one["confidence"] for one in later] == [0.2] * len(later)
        assert (line["status"] == "labelled") == (first["confidence"] >= 0.6)
    assert (tmp_path / "run" / "labels.csv").read_text().splitlines()[0] == ",".join(CSV_COLUMNS)
    opened = open_run(tmp_path / "run")
    assert opened.record(result.labels[0].unit).label.confidences == pytest.approx(
        result.labels[0].confidences, abs=1e-4
    )
    again = build_run(run.to_dict(), toys.registry(), live_target=True)
    assert again == run


# --- what is refused ---------------------------------------------------------------------------------


def test_a_calibration_of_another_scorer_or_setting_is_refused(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 3)
    other = write(tmp_path / "other.json", scorer={"backend": "mean"})
    with pytest.raises(UsageError, match=r"fitted for the scorer 'mean', not for 'toy'"):
        toys.toy_run(photos, labels={"calibration": str(other)})
    registry = Registry.load()
    coverage = write(tmp_path / "c.json", scorer={"backend": "coverage", "model": "microworld-clip"})
    chosen = {"labels.calibration": str(coverage)}
    assert read_run("default", registry, options=chosen).labels.calibration == str(coverage)
    with pytest.raises(UsageError, match=r"fitted for scorer.enough_auc = 0.85, not for 0.6"):
        read_run("default", registry, options={**chosen, "scorer.enough_auc": 0.6})
    unfit = write(tmp_path / "d.json", scorer={"backend": "coverage", "model": "microworld-clip", "gone": 1})
    with pytest.raises(UsageError, match="other settings of the scorer 'coverage'"):
        read_run("default", registry, options={"labels.calibration": str(unfit)})


def test_another_scorer_drops_the_calibration_and_least_score_of_the_run_file(tmp_path: Path) -> None:
    coverage = write(tmp_path / "c.json", scorer={"backend": "coverage", "model": "microworld-clip"})
    own = tmp_path / "run.toml"
    own.write_text(f'base = "default"\n[labels]\ncalibration = "{coverage}"\nmin_score = 0.3\n')
    registry = Registry.load()
    assert read_run(own, registry).labels.min_score == 0.3
    labels = read_run(own, registry, options={"scorer.backend": "mean"}).labels
    assert (labels.calibration, labels.min_score) == (None, None)
    assert read_run(own, registry, settings=["labels.calibration=none"]).labels.calibration is None


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"first": [[0.5, 0.5], [0.4, 0.6]]}, "first"),
        ({"first": [[0.5, 0.5], [0.5, 0.6]]}, "first"),
        ({"later": [[0.1, 0.6], [0.2, 0.5]]}, "later"),
        ({"first": []}, "first"),
        ({"first": [[0.1, 1.5]]}, "first"),
        ({"first": [[0.1, -0.5]]}, "first"),
        ({"first": [[float("nan"), 0.5]]}, "first"),
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused_by_what_is_wrong(
    tmp_path: Path, changed: dict[str, object], what: str
) -> None:
    file = write(tmp_path / "c.json", **changed)
    with pytest.raises(UsageError, match=rf"is no calibration: {what}"):
        _ = CalibrationFile(str(file)).content


def test_the_bundled_calibration_is_found_where_runs_of_earlier_versions_name_it() -> None:
    before = CalibrationFile("package:dnd_runfiles/microworld-coverage.json")
    assert before.content == CalibrationFile("package:dnd_microworld/runfiles/microworld-coverage.json").content


@pytest.mark.parametrize(
    "name",
    [
        "package:nowhere/x.json",
        "package:dnd_runfiles/../x.json",
        "package:dnd_runfiles",
        "package:/x.json",
        "package:no.where/x.json",
    ],
)
def test_a_file_of_a_package_stays_inside_it(name: str) -> None:
    with pytest.raises(UsageError, match="there is no package:"):
        _ = CalibrationFile(name).path


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*c\.json: No such file"):
        _ = CalibrationFile(str(tmp_path / "c.json")).content
    (tmp_path / "c.json").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"cannot read .*c\.json: 'utf-8' codec"):
        _ = CalibrationFile(str(tmp_path / "c.json")).content


def test_a_run_file_names_a_calibration_for_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert absolute("c.json") == str(tmp_path / "c.json")
    assert absolute("~/c.json") == str(tmp_path / "home" / "c.json")
    assert absolute("package:a/c.json") == "package:a/c.json"


# --- fitting -----------------------------------------------------------------------------------------


def make_run(folder: Path, n: int = 40) -> Path:
    """A finished run on paper: unit i scores i / n, the label is right from the middle on."""
    folder.mkdir()
    lines, rows = [], [",".join(CSV_COLUMNS)]
    for i in range(n):
        concept = f"thing {i}" if i >= n // 2 else "nonsense"
        labels = [{"concept": concept, "score": i / n}, {"concept": "a nonsense", "score": 0.0}]
        known = {"layer": "l", "unit": i, "status": "labelled", "labels": labels, "reason": ""}
        lines.append(json.dumps({**known, "exemplars": [], "candidates": []}) + "\n")
        rows.append(f"l,{i},labelled,{concept},{i / n},,,,,")
    (folder / "labels.jsonl").write_text("".join(lines))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    run = {"labels.calibration": "none", "target.layers": ["l"]}
    (folder / "run.toml").write_text(read_run("default", Registry.load(), options=run).to_toml())
    return folder


def make_truth(file: Path, n: int = 40) -> Path:
    file.write_text("".join(f"The thing {i}. | object {i}\n" for i in range(n)))
    return file


def test_labels_are_judged_by_any_true_name(tmp_path: Path) -> None:
    judged = judge(make_run(tmp_path / "run"), make_truth(tmp_path / "truth.txt"))
    assert judged.first()[1].tolist() == [0.0] * 20 + [1.0] * 20
    assert judged.later()[1].tolist() == [0.0] * 40
    assert np.isnan(judged.scores[:, 2]).all()


def test_figures_of_a_fit_are_of_units_it_was_not_fitted_on(tmp_path: Path) -> None:
    judged = judge(make_run(tmp_path / "run"), make_truth(tmp_path / "truth.txt"))
    found = crossed(judged, "platt")
    assert found["first labels"].n == 40
    assert found["first labels"].brier.high < found["first labels"].constant_brier == 0.25
    rng = np.random.default_rng(1)
    shuffled = type(judged)(judged.units, judged.scores, rng.permutation(judged.right))
    assert crossed(shuffled, "platt")["first labels"].brier.high > 0.2
    scores, right = shuffled.first()
    knots = fit_isotonic(scores, right)
    by_heart = reliability(np.array([read_off(knots, score) for score in scores]), right)
    assert crossed(shuffled, "isotonic")["first labels"].brier.value > by_heart.brier.value + 0.01


def test_calibrate_then_use_then_check(tmp_path: Path) -> None:
    run, truth = make_run(tmp_path / "run"), make_truth(tmp_path / "truth.txt")
    out = tmp_path / "c.json"
    done = CliRunner().invoke(cli, ["calibrate", str(run), "--truth", str(truth), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "ECE" in done.output
    calibration = CalibrationFile(str(out)).content
    assert calibration.scorer["backend"] == "coverage"
    assert calibration.fitted.sources[0].units == 40
    assert read_off(calibration.first, 0.1) < 0.1 < 0.9 < read_off(calibration.first, 0.9)
    assert read_off(calibration.later, 0.9) < 0.1  # later labels have been wrong, whatever their score
    chosen = read_run("default", Registry.load(), settings=[f"labels.calibration={out}"])
    assert chosen.labels.calibrated == calibration
    command = ["calibrate", str(run), "--truth", str(truth), "--check", str(out), "--json"]
    figures = json.loads(CliRunner().invoke(cli, command).output)
    assert figures["first labels"]["brier"]["high"] < figures["first labels"]["constant_brier"]
    assert figures["later labels"]["right"] == 0.0


def test_too_little_to_fit_is_said(tmp_path: Path) -> None:
    run, truth = make_run(tmp_path / "run", 6), make_truth(tmp_path / "truth.txt")
    done = CliRunner().invoke(cli, ["calibrate", str(run), "--truth", str(truth), "--out", str(tmp_path / "c.json")])
    assert isinstance(done.exception, UsageError)
    assert "too few" in str(done.exception)
    done = CliRunner().invoke(cli, ["calibrate", str(run), "--truth", str(truth)])
    assert "either --out FILE" in str(done.exception.hint)  # type: ignore[union-attr]


# --- planted targets ---------------------------------------------------------------------------------


def test_planted_targets_share_no_concept_but_single_attributes() -> None:
    here = Path(planted.__file__).parent
    truths = [api.read_truth(here / "truth.csv")]
    truths += [api.read_truth(planted.truth_file(seed)) for seed in range(1, LAST_SEED + 1)]
    kinds = [[known.kind for known in truth.values()] for truth in truths]
    assert all(sorted(one) == sorted(kinds[0]) for one in kinds)
    for kind, some in (("conjunction", truths[:4]), ("union", truths[:10])):  # there are not more
        named = [known.concepts for truth in some for known in truth.values() if known.kind == kind]
        assert len(set(named)) == len(named)


@pytest.mark.parametrize("seed", [2, 7, 11])
def test_a_planted_target_is_wired_as_its_truth_says(seed: int) -> None:
    import torch
    from PIL import Image

    from dnd_microworld import world
    from dnd_microworld.target import preprocess

    weights = Path(planted.__file__).parent / "weights" / target_model(seed)
    truth = api.read_truth(planted.truth_file(seed))
    net = planted.build(weights, seed)
    scenes = world.draw_scenes("test", 0, 150)
    pictures = [preprocess(Image.fromarray(image)) for image in world.render(scenes).images]
    with torch.no_grad():
        strength = net(torch.stack(pictures)).numpy()
    for unit, known in truth.items():
        has = np.array([bool(set(known.concepts) & world.concepts(scene)) for scene in scenes])
        if 5 <= has.sum() <= 145:
            assert strength[has, unit.index].mean() > 3 * strength[~has, unit.index].mean(), known
