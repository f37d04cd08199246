"""`dnd run --dry-run`: items at most, times by known rates, and honest about what is not known."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import Outcome

from dnd.api import Runtime
from dnd.cli.plan import duration
from dnd.config.read import read_run
from dnd.config.run import Run
from dnd.doctor.plan import count_units, read_target
from dnd.errors import UsageError
from dnd.models.weights import Weights
from dnd.pipeline.plan import StagePlan, plan_stages, stage_items
from dnd.pipeline.rates import Rate, record
from dnd.plugin.registry import Registry
from dnd.runtime.stats import StageStats


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def microworld(*settings: str, **options: object) -> Run:
    return read_run(None, Registry.load(), options={"device": "cpu", **options}, settings=settings)


def units_of(run: Run) -> int | str:
    return count_units(run, read_target(run, Registry.load(), Runtime("cpu", Weights.default().resolve)))


def row_of(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(name + " "))
    return " ".join(line.split())


def test_items_are_counted_at_most() -> None:
    run = microworld("exemplars.k=4", "concepts.n=3", "images.n=5")
    assert stage_items(run, 7, 100) == {
        "exemplars": 100,
        "crops": 7,
        "captions": 28,
        "concepts": 7,
        "images": 105,
        "activations": 105,
        "scores": 7,
    }
    assert "crops" not in stage_items(microworld("exemplars.crops=false"), 7, 100)


def test_units_are_counted_from_the_choice_or_else_the_target() -> None:
    assert units_of(microworld("target.units=0-3,9")) == 5
    assert units_of(microworld()) == 71
    assert units_of(microworld(**{"target.layers": ["concepts", "gates"]})) == 71 + 45
    assert units_of(microworld("target.units=shown")) == "those that the images show, of 71"


def test_a_layer_or_unit_that_is_not_there_is_refused() -> None:
    for units in ("all", "0-3"):
        with pytest.raises(UsageError, match="no layer 'concept'"):
            units_of(microworld(**{"target.layers": ["concept"], "target.units": units}))
    with pytest.raises(UsageError, match="no unit 999999999: the layer has 71"):
        units_of(microworld("target.units=999999999"))


def test_a_target_that_does_not_build_leaves_the_units_open(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("my_bad_net.py").write_text("def net():\n    raise RuntimeError('no weights')\n")
    monkeypatch.delitem(__import__("sys").modules, "my_bad_net", raising=False)
    outcome = Outcome(capsys, "run", "default", "--target", "my_bad_net:net", "--layer", "x", "--dry-run")
    assert outcome.code == 0
    assert "not counted: my_bad_net:net cannot be built: RuntimeError: no weights" in outcome.out
    assert row_of(outcome.out, "captions").startswith("captions blip2 ? no rate known yet")
    assert row_of(outcome.out, "exemplars").startswith("exemplars my_bad_net:net 4,000 no rate known yet")


def test_times_come_from_what_was_measured_here(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = microworld("target.units=0-9")
    arguments = ("run", "--units", "0-9", "--device", "cpu", "--dry-run")
    assert "How long it takes is not known yet" in Outcome(capsys, *arguments).out
    passed = StageStats("exemplars", seconds=12.0, computed=10, passed=(4000, 10.0))
    record(run, [passed, StageStats("captions", computed=50, seconds=30.0, load_seconds=20.0)])
    out = Outcome(capsys, *arguments).out
    assert row_of(out, "exemplars").startswith("exemplars microworld 4,000 10 s")
    assert row_of(out, "crops").startswith("crops microworld 10 2 s")
    assert row_of(out, "captions").startswith("captions blip2 100 40 s")
    assert row_of(out, "images").startswith("images sdxl 800 no rate known yet")
    total = "At most 52 s, without concepts, images, activations, scores, of which it is not known"
    assert total in out
    assert "earlier runs on this machine" in out
    assert list((tmp_path / "here").iterdir()) == []


def test_a_size_that_is_not_all_known_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files = "{ path = 'config.json' }, { path = 'm.safetensors', size = 2500000, sha256 = '" + "0" * 64 + "' }"
    source = "hub:a/b@" + "0" * 40
    (tmp_path / "own.lock").write_text(
        f'version = 1\n[[model]]\nname = "half"\nrole = "captioner"\nsource = "{source}"\nlicence = "mit"\n'
        f"gated = false\nfiles = [{files}]\n"
    )
    monkeypatch.setenv("DND_LOCK", str(tmp_path / "own.lock"))
    outcome = Outcome(capsys, "run", "--dry-run", "--units", "0", "--set", "captioner.model=half")
    assert row_of(outcome.out, "half") == "half captioner 2.5+ not pinned"


def test_a_stage_takes_its_load_and_its_items() -> None:
    rate = Rate(2.0, 30.0, 100)
    assert StagePlan("captions", 100, rate).seconds == 80.0
    assert StagePlan("captions", None, rate).seconds is None
    assert StagePlan("captions", 100, None).seconds is None


def test_stages_without_known_units_have_no_number() -> None:
    plans = {plan.name: plan.items for plan in plan_stages(microworld(), None, 4000, {})}
    assert plans["exemplars"] == 4000
    assert {items for name, items in plans.items() if name != "exemplars"} == {None}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "1 s"), (89, "89 s"), (90, "2 min"), (5400, "90 min"), (12_000, "3 h 20 min")]
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
