"""The last-layer test: run files that resolve, and a truth file of class names."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import needs
import pytest
from PIL import Image

from dnd.api import Unit, read_truth
from dnd.config.read import read_run
from dnd.evaluation.tables import Row
from dnd.evaluation.truth import join
from dnd.plugin.registry import Registry


def test_the_run_file_labels_every_logit_and_differs_from_photos_in_nothing_else(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    options = {"probing.sets": [str(tmp_path)]}
    photos, logits = (read_run(name, Registry.load(), options=options).to_dict() for name in ("photos", "last-layer"))
    assert logits["target"].pop("units") == "all"
    photos["target"].pop("units")
    assert logits == photos


def test_the_full_size_run_file_resolves(tmp_path: Path) -> None:
    run = read_run("last-layer-resnet50", Registry.load(), options={"probing.sets": [str(tmp_path)]})
    assert (run.target.name, run.target.layers, run.target.units) == ("transformers", ("classifier.1",), "all")
    assert run.target.config.model == "resnet-50"  # type: ignore[attr-defined]
    assert run.summarizer.name == "vllm"


@needs.transformers
def test_classifier_1_is_the_logits_of_that_architecture() -> None:
    import transformers

    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=5)
    model = transformers.ResNetForImageClassification(config)
    assert dict(model.named_modules())["classifier.1"].out_features == 5


@needs.lite
def test_the_truth_file_names_every_class_with_its_synonyms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnd_lite.__main__ import main

    file = tmp_path / "classes.csv"
    monkeypatch.setattr(sys, "argv", ["dnd_lite", "--truth", str(file)])
    assert main() == 0
    truth = read_truth(file)
    assert len(truth) == 1000
    assert "espresso" in truth[Unit("", 967)].meanings[0]
    assert {"great white shark", "white shark"} <= set(truth[Unit("", 2)].meanings[0])
    for layer in ("_fc", "classifier.1"):
        (case,) = join([Row(Unit(layer, 1), ("goldfish",))], truth)
        assert case.truth is not None
        assert case.truth.meanings[0][0] == "goldfish"
    with file.open(newline="", encoding="utf-8") as opened:
        assert all(row["text"] == row["text"].strip() != "" for row in csv.DictReader(opened))


@needs.lite
def test_a_truth_file_is_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dnd_lite.__main__ import main

    monkeypatch.setattr(sys, "argv", ["dnd_lite"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "required: --truth" in capsys.readouterr().err
