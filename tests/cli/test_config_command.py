"""`dnd config`, `dnd runfiles`, `dnd init` and `dnd plugins NAME`: what there is and how it is set."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import toys

from dnd.cli.main import main
from dnd.config.tables import read_tables


def dnd(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_config_prints_the_run_file_that_a_run_would_follow(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = dnd(capsys, "config", "--units", "0-3", "--set", "images.n=5", "--seed", "7")
    assert status == 0
    tables = tomllib.loads(out)
    assert (tables["target"]["units"], tables["images"]["n"], tables["seed"]) == ("0-3", 5, 7)
    assert tables["captioner"]["backend"] == read_tables("default")["captioner"]["backend"]
    file = tmp_path / "resolved.toml"
    file.write_text(out, "utf-8")
    assert dnd(capsys, "config", str(file))[1] == out, "what is printed can be run"


def test_config_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = dnd(capsys, "config", "--set", "images.m=5")
    assert (status, out) == (1, "")
    assert "images.m: there is no such setting" in err


def test_runfiles_have_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = dnd(capsys, "runfiles")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()[1:]}
    assert {"default", "full", "photos"} <= lines.keys()
    assert all(len(text) > 10 for text in lines.values())
    records = json.loads(dnd(capsys, "runfiles", "--json")[1])
    assert {record["name"] for record in records} == lines.keys()


INIT = ("--base", "photos", "--target", "efficientnet-lite", "--layer", "_fc", "--probe")


def test_init_writes_a_run_file_that_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, photos = tmp_path / "mine.toml", tmp_path / 'a "folder"'
    status, out, _ = dnd(capsys, "init", str(file), *INIT, str(photos), "--units", "0-3")
    assert status == 0
    assert f"dnd doctor {file}" in out
    tables = read_tables(file)
    assert tables["target"]["layers"] == ["_fc"]
    assert tables["probing"]["set"] == str(photos)
    assert tables["captioner"]["backend"] == "tagger", "of its base"
    status, _, err = dnd(capsys, "init", str(file), *INIT, "x")
    assert (status, "exists" in err) == (1, True)
    status, _, err = dnd(capsys, "init", str(tmp_path / "b.toml"), "--base", "photo")
    assert (status, "photos" in err) == (1, True)


def test_a_plugin_is_shown_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = dnd(capsys, "plugins", "blip2")
    assert "num_beams (int ≥ 1, default 1)\n      1 is greedy decoding" in out
    assert "Models by default: blip2-opt-2.7b" in out
    assert "Example: dnd run RUNFILE --captioner blip2" in out
    for arguments in (("--json", "blip2"), ("blip2", "--json")):
        (record,) = json.loads(dnd(capsys, "plugins", *arguments)[1])
        assert {one["name"] for one in record["settings"]} >= {"model", "num_beams"}
    status, _, err = dnd(capsys, "plugins", "blip-2")
    assert (status, "Did you mean 'blip2'" in err) == (1, True)


def test_every_plugin_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for record in json.loads(dnd(capsys, "plugins", "--json")[1]):
        if record["distribution"] == "dnd-describe":
            assert len(record["description"]) > 10, record
            assert dnd(capsys, "plugins", record["name"])[0] == 0


def target() -> object:
    return toys.Net(), toys.preprocess


def test_a_run_ends_with_what_to_do_next_and_the_path_of_its_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = toys.make_photos(tmp_path / "photos")
    backends = [word for kind in ("captioner", "summarizer", "generator", "scorer") for word in (f"--{kind}", "toy")]
    where = ["--target", f"{__name__}:target", "--layer", "units", "--probe", str(photos), "--device", "cpu"]
    monkeypatch.setattr("dnd.plugin.registry.Registry.load", toys.registry)
    folder = tmp_path / "run"
    status, out, err = dnd(capsys, "run", "full", *where, *backends, "--set", "images.n=4", "--out", str(folder))
    assert status == 0
    *_, heading, last = out.splitlines()
    assert f"dnd export {folder}" in out[out.index("\nNext, ") :], "what to do next comes right before the report"
    assert (heading, last) == ("The report:", str(folder / "report" / "index.html"))
    assert Path(last).is_file()
    assert "scores" in err, "progress is on standard error"
    assert "scores" not in out
    status, out, _ = dnd(
        capsys, "run", "full", *where, *backends, "--set", "images.n=4", "--out", str(folder / "2"), "--no-report"
    )
    assert (status, out.splitlines()[-1]) == (0, str(folder / "2"))
    assert not (folder / "2" / "report").exists()
    summary = json.loads(dnd(capsys, "run", str(folder), "--out", str(folder), "--json", "--target", where[1])[1])
    assert summary["report"] == str(folder / "report" / "index.html")
