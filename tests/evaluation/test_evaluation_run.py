"""`dnd eval` as a user gives it: tables, and a run over the toy world."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import toys
from encoders import make_encoder
from rich.console import Console

from dnd.cli import main as cli
from dnd.config.read import build_run
from dnd.evaluation.images import held_out_images
from dnd.evaluation.reopen import Opened, open_run
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Registry
from dnd.runtime.progress import Meter


def net() -> Any:
    """The toy target, as a run file names it."""
    return toys.Net(), toys.preprocess


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_encoder(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def toy_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of the toys, 80 photos, of which 12 are its sample."""
    known = Registry([*toys.registry().entries, Registry.load().find("encoder", "clip")])
    monkeypatch.setattr("dnd.evaluation.reopen.Registry.load", lambda: known)
    toys.MOOD.__init__()  # type: ignore[misc]
    toys.make_photos(tmp_path / "photos", 80)
    tables = toys.toy_run(tmp_path / "photos", labels={"min_auc": 0.5}).to_dict()
    tables["target"]["name"] = f"{__name__}:net"
    execute(build_run(tables, toys.registry()), tmp_path / "run", registry=toys.registry())
    return tmp_path / "run"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["eval", *arguments])
    out, err = capsys.readouterr()
    return int(str(caught.value.code or 0)), out, err


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def test_a_table_against_lines(tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    table, truth = tmp_path / "t.csv", tmp_path / "truth.txt"
    table.write_text("Neuron ID,label\n0,dots\n1,red\n2,\n3,cat\n")
    truth.write_text("dots | stripes\nred\ncat\na\n")
    found = evaluated(capsys, str(table), "--truth", str(truth), "--encoder", encoder)
    assert found["counts"]["with_truth_labelled"] == 3
    assert found["read"]["truth"] == "text, line by line: 4 units, the first line is unit 0"
    figures = found["figures"]
    assert figures["match.exact"]["own"]["value"] == pytest.approx(2 / 3, abs=1e-5)
    assert figures["match.exact"]["own"]["low"] == pytest.approx(0.20766, abs=1e-5)  # Wilson's of 2 in 3
    assert figures["match.exact"]["own_minus_shuffled"]["n"] == 3
    assert any("fewer than 30 units (here 3, 4)" in note for note in found["notes"])
    assert figures["match.exact"]["with_abstentions_as_wrong"]["value"] == 0.5
    assert figures["match.exact_of_all"]["own"]["value"] == 0.5
    assert set(figures) == {
        *("match.exact_of_all", "match.exact", "text.cosine", "text.own_vs_other_auc", "retrieval.top1"),
        *("retrieval.top5", "retrieval.mrr", "retrieval.median_rank", "text.bertscore_f1"),
        "text.bertscore_f1_rescaled",
    }
    for figure in figures.values():
        assert figure["own"]["low"] <= figure["own"]["value"] <= figure["own"]["high"]
        assert set(figure["controls"]) == {"shuffled", "constant"}
    assert [unit["figures"].get("match.exact") for unit in found["units"]] == [1, 1, None, 0]


def test_the_screen_says_the_same(tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str]) -> None:
    table, truth = tmp_path / "t.csv", tmp_path / "truth.csv"
    table.write_text("layer,unit,description\nfc,0,[red]\nfc,1,cat\n")
    truth.write_text("unit,text\n0,red\n0,dots\n1,a cat\n")
    code, out, _ = run(capsys, str(table), "--truth", str(truth), "--encoder", encoder, "--clip", "microworld-clip")
    assert code == 0
    assert "2 units: 2 labelled, 0 uninterpretable, 0 failed." in out
    words = " ".join(out.split())
    assert "Labels read as CSV, 2 rows, units from 'unit', layers from 'layer', labels from 'description'." in words
    assert "Truth read as CSV, 3 rows, units from 'unit', texts from 'text'." in words
    line = next(line for line in out.splitlines() if line.startswith("match.exact "))
    assert "1 [0.342, 1]" in line
    chance = next(line for line in out.splitlines() if line.startswith("retrieval.top1 "))
    assert " 0.5 " in chance
    assert "text.clip_cosine" in out


def test_the_figures_fit_a_terminal_of_80_columns(
    tmp_path: Path, encoder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, truth = tmp_path / "t.csv", tmp_path / "truth.csv"
    table.write_text("layer,unit,description\nfc,0,[red]\nfc,1,cat\n")
    truth.write_text("unit,text\n0,red\n0,dots\n1,a cat\n")
    monkeypatch.setattr("dnd.cli.console.make_console", lambda: Console(width=80, highlight=False))
    code, out, _ = run(capsys, str(table), "--truth", str(truth), "--encoder", encoder)
    assert code == 0
    lines = [line.rstrip() for line in out.splitlines()]
    head = next(line for line in lines if line.startswith("figure"))
    assert head.split("  ")[-1].strip() == "best constant", "no words are broken"
    assert any(line.startswith("match.exact_of_all ") and "[" in line for line in lines)
    assert any(line.startswith("--json, or a terminal of 140 columns") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["t.csv"], "nothing to measure the labels against", "figures on images need a run's folder"),
        (["t.csv", "--truth", "truth.txt", "--encoder", "nope"], "there is no encoder 'nope'", "Name a folder"),
        (["t.csv", "--truth", "bad.csv", "--encoder", "x"], "none of its columns holds unit numbers", "unit,text"),
        (["t.csv", "--truth", "truth.txt", "--encoder", "x", "--layer", "a"], "the truth has no layer 'a'", "none"),
        (["t.csv", "--layer", "a", "--encoder", "x"], "nothing to measure", "--truth FILE"),
        (["truth.txt", "--truth", "truth.txt"], "no label table that is known", "Known columns"),
        ([], "name a run's folder or a label table", "dnd eval RUN"),
        (["."], "holds no labels.csv", "finished run's folder"),
    ],
)
def test_mistakes_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("layer,unit,description\nfc,0,red\n")
    Path("truth.txt").write_text("red\n")
    Path("bad.csv").write_text("id,name\n0,red\n")
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "Traceback" not in err
    assert said in err.split("Hint:")[0]
    assert hint in err.split("Hint:")[1]


def test_sanity_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--sanity")
    assert code == 0
    verdicts = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.endswith(("passes", "fails "))}
    assert [name for name, verdict in verdicts.items() if verdict == "passes"] == [
        *("f1", "iou", "correlation", "cosine", "wpmi", "auprc", "inverse_auprc")
    ]
    found = json.loads(run(capsys, "--sanity", "--json")[1])
    assert (len(found["metrics"]), len(found["images"])) == (18, 8)
    assert "None notices" in out


def test_marks_of_the_report_are_a_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, marks = tmp_path / "t.csv", tmp_path / "marks.csv"
    table.write_text("layer,unit,description\nfc,0,red\nfc,1,cat\nfc,2,dog\nfc,3,sky\n")
    head = "layer,unit,label,mark,text,note\n"
    marks.write_text(head + 'fc,0,red,right,red,\nfc,1,cat,wrong,,"no, a lynx"\nfc,2,cow,right,cow,of a former run\n')
    found = evaluated(capsys, str(table), "--truth", str(marks))
    own = found["figures"]["marks.right"]["own"]
    assert (own["value"], own["n"]) == (0.5, 2)
    assert found["figures"]["match.exact_of_all"]["own"] | {"low": 0, "high": 0} == {
        "value": 0.5,
        "n": 2,
        "low": 0,
        "high": 0,
    }
    assert any("name an --encoder, one of " in note for note in found["notes"])
    table.write_text("layer,unit,description\nfc,0,=red\n")
    marks.write_text(head + "fc,0,'=red,right,'=red,\n")  # as the report writes it
    found = evaluated(capsys, str(table), "--truth", str(marks))["figures"]
    assert (found["marks.right"]["own"]["value"], found["match.exact_of_all"]["own"]["value"]) == (1, 1)
    table.write_text("layer,unit,description\nfc,1,cat\n")
    marks.write_text(head + "fc,1,cat,wrong,,\n")
    assert evaluated(capsys, str(table), "--truth", str(marks))["figures"]["marks.right"]["own"]["value"] == 0


# --- on images ---------------------------------------------------------------------------------------


def test_labels_of_a_run_drive_their_units(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, str(toy_run))
    assert code == 1
    assert "--images 20: so many images are generated of each label" in " ".join(err.split())
    code, out, err = run(capsys, str(toy_run), "--images", "6", "--clip", "microworld-clip", "--json")
    assert code == 0
    assert "18 images of the labels" in err
    found = json.loads(out)
    stages = found["images"].pop("stages")
    assert (stages["images"]["items"], stages["images"]["computed"]) == (18, 18)
    assert stages["evaluation-activations"]["items"] <= 18 + found["images"]["random_images"]
    assert found["images"] == {
        "images_per_label": 6,
        "distinct_labels": 3,
        "random_images": found["images"]["random_images"],
        "random_images_are": "held out",
    }
    assert 30 <= found["images"]["random_images"] <= 68
    figures = found["figures"]
    for name in ("auc", "mad", "f1", "iou", "correlation", "cosine", "auprc", "inverse_auprc", "suppression_auc"):
        figure = figures[f"images.{name}"]
        assert figure["own"]["value"] > figure["controls"]["shuffled"]["value"], name
        assert figure["own"]["value"] >= figure["controls"]["constant"]["value"], name
    assert figures["images.suppression_auc"]["own"]["value"] == 1  # only red images are red
    assert figures["images.suppression_auc"]["controls"]["shuffled"]["value"] == pytest.approx(0.25, abs=0.05)
    assert figures["images.simulation_correlation"]["own"]["n"] == 3
    assert all(
        "were among those" in note or "fewer than 30" in note for note in found["notes"]
    )  # flat toys may be alike by chance
    assert json.loads((toy_run / "evaluation.json").read_text())["figures"] == figures


def test_a_unit_that_is_not_finite_on_images_is_left_out(
    toy_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    activations = Opened.activations

    def spoilt(self: Opened, pictures: Any) -> Any:
        found = {layer: values.copy() for layer, values in activations(self, pictures).items()}
        found["units"][0, 1] = np.nan
        return found

    monkeypatch.setattr(Opened, "activations", spoilt)
    found = evaluated(capsys, str(toy_run), "--images", "6")
    assert found["figures"]["images.auc"]["own"]["n"] == 2
    assert "left out: units/1, not finite on some image" in found["notes"]


def test_figures_are_shown_though_they_cannot_be_kept(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(toy_run / "evaluation.json")
    truth = toy_run.parent / "truth.csv"
    truth.write_text("unit,description\n0,red\n1,green\n2,blue\n")
    code, out, err = run(capsys, str(toy_run), "--truth", str(truth), "--json")
    assert (code, "cannot write" in err) == (1, True)
    assert json.loads(out)["counts"]["with_truth_labelled"] == 3


def test_another_target_than_was_labelled_is_reported(
    toy_run: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(capsys, str(toy_run), "--images", "6")[0] == 0
    assert "is not the one that" not in caplog.text
    facts = json.loads((toy_run / "run.json").read_text())
    (toy_run / "run.json").write_text(json.dumps({**facts, "target": "0" * 64}))
    assert run(capsys, str(toy_run), "--images", "6")[0] == 0
    assert f"is not the one that the run in {toy_run} has labelled" in caplog.text


def test_images_that_judge_are_not_those_that_chose(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def requests() -> set[str]:
        parts = toy_run.parent.glob(".dnd-store/images-*/part-*.parquet")
        return {key for part in parts for key in pq.read_table(part).column("key").to_pylist()}

    chose = requests()
    drawn = sum(toys.MOOD.calls["images"])
    evaluated(capsys, str(toy_run), "--images", "6")
    assert len(requests() - chose) == 18  # other seeds for each of three labels
    assert sum(toys.MOOD.calls["images"]) - drawn == 18
    evaluated(capsys, str(toy_run), "--images", "6")
    assert sum(toys.MOOD.calls["images"]) - drawn == 18  # a second time nothing is drawn


def test_held_out_images_are_none_of_the_runs(toy_run: Path) -> None:
    opened = open_run(toy_run, images=2, meter=Meter(Console(quiet=True)))
    seen = opened.seen()
    assert len(seen.sample) == 12
    assert seen.drawn
    pictures, source = held_out_images(opened)
    used = [i for i in range(80) if i in seen.sample or opened.probing.image_name(i) in seen.sources]
    contents = {opened.probing.open(i).tobytes() for i in used}
    assert source == "held out"
    assert not contents & {picture.open().tobytes() for picture in pictures}


def test_a_label_that_cannot_be_drawn_is_noted(toy_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.MOOD.fail_on = {"green"}
    found = evaluated(capsys, str(toy_run), "--images", "4")
    assert found["figures"]["images.auc"]["own"]["n"] == 2
    assert any("not generated: 'green' (images: cannot do green" in note for note in found["notes"])


def test_where_no_label_can_be_drawn_the_other_figures_stand(
    toy_run: Path, encoder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    toys.MOOD.fail_on = set(toys.COLOURS)
    (tmp_path / "truth.txt").write_text("red\ngreen\nblue\n")
    truth = ["--truth", str(tmp_path / "truth.txt"), "--encoder", encoder]
    found = evaluated(capsys, str(toy_run), "--images", "1", *truth)
    assert found["figures"]["match.exact"]["own"]["value"] == 1
    assert not any(name.startswith("images.") for name in found["figures"])
    assert len([note for note in found["notes"] if "not generated" in note]) == 3


def test_a_run_of_a_live_module_says_what_it_lacks(
    toy_run: Path, encoder: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (toy_run / "run.toml").read_text().replace(f"{__name__}:net", "Net")
    (toy_run / "run.toml").write_text(text)
    code, _, err = run(capsys, str(toy_run), "--images", "2")
    assert code == 1
    assert "cannot be opened again" in err
    assert "Without --images" in err
    truth = tmp_path / "truth.txt"
    truth.write_text("red\ngreen\nblue\n")
    found = evaluated(capsys, str(toy_run), "--truth", str(truth), "--encoder", encoder)
    assert found["figures"]["match.exact"]["own"]["value"] == 1
