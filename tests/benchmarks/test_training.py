"""The training recipes of the microworld's checkpoints: that they run, go on where they were stopped, and made what
is shipped."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.training import __main__ as recipes
from benchmarks.training import balance, common, landcover, planted, sharp, target
from dnd_microworld import HERE, LAST_SEED, MicroworldProbing
from dnd_microworld.landcover import LandCoverNet
from dnd_microworld.planted import truth_file
from dnd_microworld.target import Planted, PlantedNet, load


def read_units(file: Path) -> list[Planted]:
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return [Planted(row["kind"], tuple(text for text in row["concept"].split(" | ") if text)) for row in rows]


def test_every_recipe_can_be_started() -> None:
    for name in recipes.RECIPES.values():
        assert callable(import_module(f"benchmarks.training.{name}").main)


@pytest.mark.parametrize("seed", range(LAST_SEED + 1))
def test_the_shipped_truth_is_what_the_recipe_plants(seed: int) -> None:
    wanted, file = (planted.units(seed), truth_file(seed)) if seed else (target.planted_units(), target.TRUTH)
    assert read_units(file) == wanted


def fit(work: Path, steps: int, stop_after: int | None = None) -> torch.Tensor:
    """The weights of a line fitted to a slope of 3; KeyboardInterrupt at the step `stop_after`."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)

    def loss_of(step: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        if step == stop_after:
            raise KeyboardInterrupt
        x = torch.randn(32, 1)
        return ((model(x) - 3 * x) ** 2).mean(), {}

    common.fit(
        model, loss_of, steps=steps, lr=0.1, work=work, name="line", seed=1, warmup=5, ema=0.9, save_seconds=-1.0
    )
    return model.weight.detach()


def test_a_training_that_was_stopped_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken = fit(tmp_path / "a", 200)
    assert unbroken.item() == pytest.approx(3, abs=0.05)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", 200, stop_after=120)
    assert torch.equal(fit(tmp_path / "b", 200), unbroken)


def test_a_recipe_trains_writes_and_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest one, for a few steps and on few tiles, from the command line; nothing shipped is touched."""
    monkeypatch.setattr(common, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(common, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setattr(landcover, "TILES", 64)
    whole = landcover.measure

    def measure(net: LandCoverNet) -> dict[str, float]:
        return whole(net, 100)

    monkeypatch.setattr(landcover, "measure", measure)
    before = (HERE / "figures.json").read_bytes()
    done = CliRunner().invoke(recipes.train, ["landcover", "--steps", "3", "--work", str(tmp_path / "work")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "weights" / "microworld-landcover" / "model.safetensors").is_file()
    measured = json.loads((tmp_path / "figures.json").read_text())["microworld-landcover"]
    assert 0 <= measured["accuracy, mark trained"] <= 1
    assert (HERE / "figures.json").read_bytes() == before


def test_senses_pay_for_what_conjunctions_make_of_them() -> None:
    """A red star on blue in one row of four cells: star | half star | blue | blue."""
    shares = torch.zeros(1, 21, 1, 4)
    for attribute, row in {"red": (1, 0.5, 0, 0), "star": (1, 0.5, 0, 0), "blue": (0, 0.5, 1, 1)}.items():
        shares[0, target.ATTRIBUTES.index(attribute), 0] = torch.tensor(row)
    assert sharp.conjunction_loss(shares.logit(1e-6), shares) == pytest.approx(0, abs=1e-3)
    assert sharp.conjunction_loss(torch.full_like(shares, -9), shares) == pytest.approx(1), "nothing is found"
    beside = shares.clone()
    beside[0, target.ATTRIBUTES.index("star"), 0, 2] = 0.3
    assert sharp.conjunction_loss(beside.logit(1e-6), shares) == pytest.approx(0.3, abs=1e-3), "a blue star"


def test_sharp_senses_find_coloured_shapes_where_the_shipped_ones_find_others() -> None:
    shipped, sharper = (
        target.purity(load(HERE / "weights" / name).senses, count=1000) for name in (target.NAME, sharp.NAME)
    )
    assert shipped["purity, coloured star"] < 0.7
    assert sharper["purity, worst coloured shape"] >= 0.9
    assert sharper["purity, worst coloured texture"] >= 0.9


def test_a_unions_gain_lets_exemplars_show_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the scenes that the recipe takes."""
    senses = load(HERE / "weights" / sharp.NAME).senses
    union = Planted("union", ("checkerboard", "heart"))
    units = [union, Planted("noise", ())]

    def few(kind: type[MicroworldProbing] = MicroworldProbing, **settings: int) -> MicroworldProbing:
        return whole(kind, count=400, **settings)

    def shown(gain: float) -> list[int]:
        net = PlantedNet.plant(senses, units, [gain, 1], target.SHAPE)
        counts: list[int] = balance.shown(net, {0: union}, few(balance.ValidationScenes))[0].tolist()
        return counts

    whole = balance.probing
    monkeypatch.setattr(balance, "probing", few)
    monkeypatch.setattr(balance, "DRAWS", 1)
    monkeypatch.setattr(target, "SCENES_FOR_GAINS", 1200)
    assert shown(0)[0] == shown(100)[1] == 10
    gains = balance.union_gains(PlantedNet.plant(senses, units, [1, 1], target.SHAPE), units)
    assert min(shown(gains[0])) >= 3
    assert max(shown(0)[1], shown(100)[0]) < 3
    assert gains[1] == 1
