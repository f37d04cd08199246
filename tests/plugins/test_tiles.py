"""Multi-band tiles: people see RGB, the target sees every band, of crops too."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import toys
from bags import Bags
from click.testing import CliRunner
from PIL import Image

from dnd.analysis.accuracy import labelled
from dnd.api import Box, Runtime, UsageError
from dnd.cli.main import cli
from dnd.config.read import build_run, read_run
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Entry, Registry
from dnd.probing.sets import UnionSet
from dnd.results.run import RunFolder
from dnd.target.geometry import cut
from dnd_tiles import Tiles, TilesConfig, bands_of, read_tile, to_rgb

RED, NEAR_INFRARED = 0, 3


class Net(torch.nn.Module):
    """(B, 4, 8, 8): a unit for each band."""

    def __init__(self):
        super().__init__()
        self.units = torch.nn.Identity()

    def forward(self, x):
        return self.units(x).mean((2, 3))


def preprocess(image):
    bands = bands_of(image, 4, range=(0, 4000))
    x = torch.from_numpy(bands).permute(2, 0, 1)[None] / 4000
    return torch.nn.functional.adaptive_avg_pool2d(x, 8)[0]


def make_tiles(folder, n=12):
    """The same red in all; the near infrared grows with the number and lies on the left half."""
    for number in range(n):
        tile = np.zeros((16, 16, 4), np.uint16)
        tile[:, :, RED] = 3000
        tile[:, :8, NEAR_INFRARED] = 300 * number
        where = folder / ("dry" if number < n // 2 else "lush")
        where.mkdir(parents=True, exist_ok=True)
        if number % 2:
            np.save(where / f"{number:02}.npy", np.moveaxis(tile, 2, 0))
        else:
            tifffile.imwrite(where / f"{number:02}.tif", tile, photometric="minisblack", planarconfig="contig")
    return folder


def tiles(folder, **settings):
    return Tiles(TilesConfig(folder=str(folder), **settings), Runtime("cpu", lambda name: None))


def test_a_run_file_with_tiles_drives_units_of_every_band(tmp_path):
    make_tiles(tmp_path / "tiles")
    registry = Registry([*toys.registry().entries, Entry("probing-set", "tiles", Tiles, "tiles", "1", "ok")])
    tables = {
        "target": {"name": "Net", "layers": ["units"], "units": "all"},
        "probing": {"set": "tiles", "folder": str(tmp_path / "tiles"), "range": [0, 4000]},
        "exemplars": {"k": 3, "sample": 6},
        "images": {"n": 2},
        "device": "cpu",
        **{kind: {"backend": "toy"} for kind in ("captioner", "summarizer", "generator", "scorer")},
    }
    run = build_run(tables, registry, live_target=True)
    assert build_run(run.to_dict(), registry, live_target=True) == run
    result = execute(run, tmp_path / "run", registry=registry, live=(Net(), preprocess))
    card = result[NEAR_INFRARED]
    assert card.exemplars[0].source == "lush/11.npy"
    assert card.exemplars[0].box is not None  # the left half, where all of it is
    assert card.exemplars[0].activation == pytest.approx(3300 / 4000, rel=0.01)
    assert card.exemplars[0].caption == "a red thing"
    assert card.image(card.exemplars[0]).getpixel((0, 0)) == (191, 0, 0)
    assert result[RED].exemplars == (), "all tiles are alike to it"
    facts = result.facts["probing"]
    assert (facts["images"], facts["duplicates"]) == (12, 0)  # equal in RGB, but for their fourth band


def test_npy_and_tif_in_either_order_read_the_same(tmp_path):
    tile = np.arange(5 * 6 * 4, dtype=np.uint16).reshape(5, 6, 4)
    np.save(tmp_path / "last.npy", tile)
    np.save(tmp_path / "first.npy", np.moveaxis(tile, 2, 0))
    tifffile.imwrite(tmp_path / "a.tif", tile, photometric="minisblack", planarconfig="contig")
    for name in ("last.npy", "first.npy", "a.tif"):
        bands, eight_bit = read_tile(tmp_path / name)
        assert bands.dtype == np.float32
        assert not eight_bit
        assert np.array_equal(bands, tile)
    assert read_tile(tmp_path / "first.npy", "last")[0].shape == (4, 5, 6)


def test_rgb_by_range_by_depth_and_by_percentiles(tmp_path):
    tile = np.zeros((4, 4, 5), np.float32)
    tile[:, :, 4], tile[:, :2, 1] = 1000, 500
    assert to_rgb(tile, (4, 1, 0), given=(0, 2000))[0, 0].tolist() == [128, 64, 0]
    assert to_rgb(tile, (4, 1, 0), usual=(0, 255))[0, 3].tolist() == [255, 0, 0]
    assert to_rgb(tile, (4, 1, 0))[0, 0].tolist() == [255, 128, 0]
    np.save(tmp_path / "x.npy", np.full((4, 4, 3), 77, np.uint8))
    assert tiles(tmp_path).open(0).getpixel((0, 0)) == (77, 77, 77)


def test_a_crop_carries_its_part_of_the_bands(tmp_path):
    image = tiles(make_tiles(tmp_path)).open(11)
    part = cut(image, Box(0.5, 0, 1, 0.5))
    assert part.size == (8, 8)
    assert part.info["bands"].shape == (8, 8, 4)
    assert part.info["bands"][:, :, NEAR_INFRARED].max() == 0
    assert cut(image, Box(0, 0, 0.5, 1)).info["bands"][:, :, NEAR_INFRARED].min() == 3300
    assert image.info["bands"].shape == (16, 16, 4)


def test_an_image_that_has_only_rgb_is_filled():
    image = Image.new("RGB", (3, 2), (255, 0, 51))
    made = bands_of(image, 5, rgb=(3, 2, 1), range=(0, 1000))
    assert made.shape == (2, 3, 5)
    assert made[0, 0].tolist() == pytest.approx([400, 200, 0, 1000, 400])
    filled = bands_of(image, 5, rgb=(3, 2, 1), range=(0, 1000), fill=[1, 2, 3, 4, 5])
    assert filled[0, 0].tolist() == pytest.approx([1, 200, 0, 1000, 5])


def test_another_sensors_tiles_are_refused(tmp_path):
    with pytest.raises(UsageError, match="4 bands, the target takes 13"):
        bands_of(tiles(make_tiles(tmp_path)).open(0), 13)


def test_classes_names_and_digest(tmp_path):
    found = tiles(make_tiles(tmp_path / "tiles"))
    assert len(found) == 12
    assert (found.image_name(0), found.label(0), found.label(11)) == ("dry/00.tif", "dry", "lush")
    assert labelled(UnionSet([found]), None).names == ("dry", "lush")
    digest = found.digest()
    assert tiles(tmp_path / "tiles").digest() == digest
    assert tiles(tmp_path / "tiles", rgb=(1, 2, 3)).digest() != digest
    np.save(tmp_path / "tiles" / "dry" / "01.npy", np.ones((4, 4, 4), np.uint16))
    assert tiles(tmp_path / "tiles").digest() != digest


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (np.zeros((2, 2, 2, 2)), "is no tile"),
        (np.array([[["a"]]]), "not numbers"),
        (np.array([{}], object), "[Pp]ython objects"),
        (np.full((2, 2, 3), np.nan), "not finite"),
        (np.zeros((4, 4, 2)), "2 bands, and none of number 2"),
        (np.zeros((0, 4, 3)), "is no tile|empty"),
    ],
)
def test_files_that_are_no_tiles_count_as_unreadable(tmp_path, made, words):
    np.save(tmp_path / "x.npy", made, allow_pickle=True)
    with pytest.raises(ValueError, match=words):
        tiles(tmp_path).open(0)


def test_damaged_files_count_as_unreadable(tmp_path):
    for name, content in (
        ("a.npy", b""),
        ("b.npy", b"\x93NUMPY\x01\x00"),
        ("c.tif", b"II*\x00\xff\xff\xff\xff"),
        ("d.tif", b""),
    ):
        (tmp_path / name).write_bytes(content)
    found = tiles(tmp_path)
    for index in range(4):
        with pytest.raises((OSError, ValueError)):
            found.open(index)


def test_a_folder_without_tiles(tmp_path):
    with pytest.raises(UsageError, match="no tiles in"):
        len(tiles(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        len(tiles(tmp_path / "nowhere"))


def test_the_run_file_and_the_network_of_the_guide_work(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "your-network.md").read_text("utf-8")
    toml = next(part for part in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if '"tiles"' in part)
    code = next(part for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "bands_of" in part)
    monkeypatch.chdir(tmp_path)
    run = build_run(tomllib.loads(toml), Registry.load())
    (chosen,) = run.probing
    assert chosen.config.folder == str(tmp_path / "tiles")
    module = types.ModuleType("my_network")
    exec(code, vars(module))
    network, prepare = module.vegetation()
    bare, green = np.full((6, 6, 4), 100, np.uint16), np.full((6, 6, 4), 100, np.uint16)
    bare[:, :, 2], green[:, :, 3] = 3000, 3000
    (tmp_path / "tiles").mkdir()
    np.save("tiles/a.npy", bare)
    np.save("tiles/b.npy", green)
    found = tiles(tmp_path / "tiles", rgb=(2, 1, 0))
    seen = network(torch.stack([prepare(found.open(0)), prepare(found.open(1))])).mean((2, 3))
    assert (seen > 0.5).tolist() == [[False, True], [True, False]]
    assert prepare(Image.new("RGB", (80, 60))).shape == (4, 64, 64)


def test_the_base_for_satellites_is_valid():
    options = {"target.name": "my_network:vegetation", "target.layers": ["1"]}
    run = read_run("satellite", Registry.load(), options=options)
    assert run.summarizer.config.domain == "land cover"
    assert "satellite" in run.generator.config.prompt
    assert build_run(tomllib.loads(run.to_toml()), Registry.load()) == run


NETWORK = """
import torch
from dnd_tiles import bands_of


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.units = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1), torch.nn.ReLU())
        self.head = torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.units[0].weight[:, :, 0, 0] = torch.tensor([[0.0, 0, 0, 1], [0.0, 0, 0, -1]])
            self.units[0].bias.copy_(torch.tensor([-0.2, 0.2]))
            self.head.weight.copy_(torch.tensor([[0.0, 1], [1, 0]]))
            self.head.bias.copy_(torch.tensor([0.075, 0]))

    def forward(self, x):
        return self.head(self.units(x).mean((2, 3)))


def net():
    def preprocess(image):
        bands = torch.from_numpy(bands_of(image, 4, range=(0, 3000), fill=[0, 0, 0, 600]))
        return torch.nn.functional.adaptive_avg_pool2d(bands.permute(2, 0, 1)[None] / 3000, 8)[0]

    return Net().eval(), preprocess
"""


def test_the_base_for_satellites_runs_with_small_models_as_the_guide_says(tmp_path, monkeypatch):
    make_tiles(tmp_path / "tiles")
    (tmp_path / "far_above.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("dnd.models.encoder.load_encoder", lambda name: Bags())
    page = (Path(__file__).parents[2] / "docs" / "your-network.md").read_text("utf-8")
    (command,) = re.findall(r"^dnd (run satellite .*(?:\n    .*)*)", page, re.MULTILINE)
    given = shlex.split(command.replace("\\\n", " ").replace("my_network:vegetation", "far_above:net"))
    given[given.index("--layer") + 1] = "units"
    small = ["probing.rgb=[0,1,2]", "concepts.n=1", "images.n=2", "generator.steps=1", "exemplars.k=3"]
    small += ["exemplars.sample=6", "labels.min_auc=0", "labels.min_score=-9"]
    run = [*given, "--device", "cpu", "--quiet", "--out", "run", *(word for one in small for word in ("--set", one))]
    done = CliRunner().invoke(cli, run, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = RunFolder("run")
    assert [found[n].exemplars[0].source.split("/")[0] for n in (0, 1)] == ["lush", "dry"], "by their fourth band"
    assert [label.status for label in found.labels] == ["labelled", "labelled"]
    assert found[0].exemplars[0].caption
    concept = found[0].concept
    for command in (["report", "run"], ["group", "run"], ["find", "run", concept]):
        done = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert f"1.00  {concept}" in done.stdout
    prune = ["prune", "run", "--concept", concept, "--least", "0.999", "--seeds", "2", "--json"]
    data = ["--eval", "tiles", "--set", "folder=tiles", "--set", "rgb=[0,1,2]"]
    record = json.loads(CliRunner().invoke(cli, [*prune, *data], catch_exceptions=False).stdout)
    assert (record["images"], record["before"]) == (12, 1)
    assert record["classes"]["lush"]["after"] == 0
