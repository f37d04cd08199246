"""`dnd doctor`: every fault is found, each with its remedy, whatever else is wrong; a healthy run has none."""

from __future__ import annotations

import io
import json
import shutil
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commandline import Outcome
from outside import CAPTIONER, install
from rich.console import Console
from safetensors.torch import save_file
from test_docs import block
from toys import make_photos

from dnd import api
from dnd.cli.doctor import show
from dnd.config.read import examine_run, read_run
from dnd.doctor import inputs as work
from dnd.doctor import machine
from dnd.doctor import plugins as parts
from dnd.doctor import space as room
from dnd.doctor.check import Check, Context, gigabytes
from dnd.doctor.examine import examine
from dnd.errors import PluginError
from dnd.models.lock import _pin
from dnd.models.lockfile import LockedFile, LockedModel, read_lock, write_lock
from dnd.models.weights import Weights
from dnd.plugin.registry import Registry
from dnd.plugin.requirements import refuse_unfit
from dnd.runtime.memory import estimate, free_memory
from dnd.store.folders import lock_path
from dnd.store.locks import only_here

FUSSY = """
from dnd.api import Captioner, UsageError, hookimpl

class Fussy(Captioner):
    name = "fussy"
    requires = {requires}
    def check(self):
        return ["the moon is not full", UsageError("the stars are wrong", "wait --until dawn")]
    def caption(self, images):
        return ["x" for _ in images]

@hookimpl
def register_captioners():
    return [Fussy]
"""


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DND_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("DND_STORE", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def context(tmp_path: Path, *settings: str, **rest: Any) -> Context:
    """The microworld's run with some settings, mistakes allowed."""
    registry = Registry.load()
    run, problems = examine_run(None, registry, options={"device": "cpu"}, settings=settings)
    out = tmp_path / "runs" / "a"
    return Context(run, registry, Weights.default(), out, out.parent / ".dnd-store", whole=not problems, **rest)


def by_id(checks: Iterator[Check] | Sequence[Check]) -> dict[str, Check]:
    found = list(checks)
    assert len({check.id for check in found}) == len(found)
    return {check.id: check for check in found}


def add_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, role: str = "scorer") -> Path:
    """A model of a hub, 3 tensors in one file, pinned in a lock file of its own; returns the file."""
    file = tmp_path / "models" / name / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(
        {
            "embed.weight": torch.zeros(100, 64),
            "layer.weight": torch.zeros(64, 64, dtype=torch.float16),
            "ids": torch.zeros(10, dtype=torch.int64),
        },
        file,
    )
    model = LockedModel(
        name=name,
        role=role,
        source=f"hub:someone/{name}@{'0' * 40}",
        licence="mit",
        gated=False,
        files=(_pin(file.parent, file.name),),
    )
    lock = tmp_path / "models.lock"
    write_lock(lock, {**read_lock(lock_path()), name: model})
    monkeypatch.setattr("dnd.models.weights.lock_path", lambda: lock)
    return file


# --- the command -------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_the_default_run_is_well_and_nothing_is_left_behind(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = Outcome(capsys, "doctor", "--json")
    rows = json.loads(outcome.out)
    assert outcome.code == 0
    assert all(list(row) == ["id", "state", "detail", "remedy"] for row in rows)
    assert {row["state"] for row in rows} == {"ok"}
    assert [row["id"] for row in rows] == [
        "run", "python", "torch", "device", "network", "plugins",
        "captioner", "summarizer", "generator", "scorer",
        "model.microworld-target", "model.microworld-blip2", "model.microworld-llama", "model.microworld-sdxl",
        "model.microworld-clip",
        "probing", "target", "layer.concepts",
        "memory.target", "memory.captioner", "memory.summarizer", "memory.generator", "memory.scorer",
        "disk.store", "disk.out", "folder.out", "folder.store", "folder.cache", "folder.models", "run-folder",
    ]  # fmt: skip
    details = {row["id"]: row["detail"] for row in rows}
    assert details["layer.concepts"] == "71 units, 71 of them wanted; units = axis 1 (71), map 16x16"
    assert details["probing"].startswith("microworld: 4,000 images, 8 of 8 tried open")
    assert list((tmp_path / "here").iterdir()) == []


def test_every_fault_is_found_in_one_go_with_its_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = add_model(monkeypatch, tmp_path, "mended")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    install(monkeypatch, tmp_path, "fussy-words", FUSSY.format(requires=("a_module_that_is_not_there",)))
    install(monkeypatch, tmp_path, "bad-one", "raise RuntimeError('no luck')")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(b"not an image")
    outcome = Outcome(
        capsys, "doctor", "default", "--layer", "concept", "--layer", "concepts", "--units", "70-80",
        "--probe", str(tmp_path / "images"), "--captioner", "fussy", "--set", "scorer.model=mended",
        "--set", "generator.model=sdxl-base-1.0", "--set", "generator.stepps=3",
        "--set", "labels.calibration=none", "--json",
    )  # fmt: skip
    assert outcome.code == 1
    found = {row["id"]: row for row in json.loads(outcome.out)}
    for name, state, detail, remedy in (
        ("run", "fault", "generator.stepps: there is no such setting", "Did you mean 'steps'?"),
        ("captioner", "fault", "a_module_that_is_not_there", "pip install a_module_that_is_not_there"),
        ("model.mended", "fault", "has the sha256", "dnd models fetch mended"),
        ("plugin.unknown.bad-one", "warning", "RuntimeError: no luck", "pip uninstall bad-one"),
        ("probing", "fault", "0 of 1 tried open; one.png:", "--probe"),
        ("layer.concept", "fault", "no layer 'concept'", "Did you mean concepts"),
        ("layer.concepts", "fault", "there is no unit 80: the layer has 71", "--units 0-70"),
        ("disk", "warning", "the number of units is not", "target"),
    ):
        assert found[name]["state"] == state, found[name]
        assert detail in found[name]["detail"], found[name]
        assert remedy in found[name]["remedy"], found[name]
    assert found["target"]["state"] == found["summarizer"]["state"] == "ok"
    assert all(row["remedy"] for row in found.values() if row["state"] == "fault")


def test_a_run_file_that_cannot_be_read_does_not_hide_the_machine(tmp_path: Path) -> None:
    found = by_id(
        examine("nowhere.toml", options={}, settings=[], out=tmp_path / "out", store=tmp_path / "store", quick=True)
    )
    assert found["run"].state == "fault"
    assert "there is no run file nowhere.toml" in found["run"].detail
    assert {"python", "torch", "device", "plugins", "folder.out"} <= found.keys()


def test_a_check_that_breaks_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(context: Context) -> Iterator[Check]:
        raise ZeroDivisionError("by zero")
        yield

    monkeypatch.setattr(machine, "check_network", broken)
    found = by_id(
        examine("nowhere.toml", options={}, settings=[], out=tmp_path / "out", store=tmp_path / "store", quick=True)
    )
    assert found["network"].state == "fault"
    assert "the check itself failed: ZeroDivisionError: by zero" in found["network"].detail
    assert found["plugins"].state == "ok"


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_its_terminal_and_loses_nothing(width: int) -> None:
    checks = [
        Check("model.a-model-with-quite-a-long-name", "fault", "it is [red]missing[/red] " * 6, "dnd models fetch it"),
        Check("plugins", "warning", "one is broken"),
        Check("python", "ok", "3.11"),
    ]
    text = io.StringIO()
    show(Console(file=text, width=width), checks)
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "".join(text.getvalue().split()).count("[red]missing[/red]") == 6
    assert "-> dnd models fetch it" in text.getvalue()
    assert lines[-1] == "This run would fail: 1 fault, 1 warning."


# --- machine -----------------------------------------------------------------------------------------


def test_a_device_that_is_not_here_is_a_fault(tmp_path: Path) -> None:
    found = by_id(machine.check_devices(context(tmp_path, "device=cuda:7")))
    assert found["device"].state == "fault"
    assert "no device 'cuda:7'" in found["device"].detail
    assert "--device cpu" in found["device"].remedy


@pytest.mark.parametrize(
    ("built", "capability", "fits"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80", "sm_90"], (8, 6), True),
        (["sm_80", "sm_90a"], (7, 5), False),
        (["sm_80"], (12, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),
    ],
)
def test_a_gpu_that_torch_was_not_built_for_is_told_apart(
    built: list[str], capability: tuple[int, int], fits: bool
) -> None:
    assert machine._supported(*capability, built) == fits


def test_a_torch_that_sees_no_gpu_beside_a_driver_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    monkeypatch.setattr(machine, "_DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = by_id(machine.check_torch(context(tmp_path)))["torch"]
    assert found.state == "warning"
    assert "NVIDIA driver 550.54.15" in found.detail
    assert "built for CUDA" in found.remedy


# --- plugins and models ------------------------------------------------------------------------------


def test_what_a_backend_finds_wrong_is_shown_and_stops_a_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "fussy-words", FUSSY.format(requires=()))
    found = by_id(parts.check_backends(context(tmp_path, "captioner.backend=fussy")))
    assert (found["captioner"].state, found["captioner.2"].state) == ("fault", "fault")
    assert found["captioner"].detail == "fussy: the moon is not full"
    assert found["captioner.2"].remedy == "wait --until dawn"
    outcome = Outcome(capsys, "run", "--captioner", "fussy", "--device", "cpu", "--out", str(tmp_path / "out"))
    assert outcome.code == 1
    assert "the moon is not full" in outcome.err
    assert "the stars are wrong. wait --until dawn" in outcome.err
    assert not (tmp_path / "out" / "run.toml").exists()


def test_two_plugins_of_one_name_are_a_fault_only_where_the_run_wants_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "one-words", CAPTIONER.format(name="twin"))
    install(monkeypatch, tmp_path, "two-words", CAPTIONER.format(name="twin"))
    registry = Registry.load()
    wanted = {"captioner.backend": "twin"}
    _, (problem,) = examine_run(None, registry, options=wanted, settings=[])
    assert "one-words and two-words both offer a captioner of this name" in str(problem)
    others = [check for check in parts.check_plugins(context(tmp_path)) if check.id == "plugin.captioner.twin"]
    assert [check.state for check in others] == ["warning", "warning"]


def test_a_check_of_a_plugin_that_breaks_is_the_plugins_fault() -> None:
    class Broken(api.Captioner):
        name = "broken"

        def check(self) -> Sequence[str]:
            raise KeyError("what")

        def caption(self, images: Any) -> list[str]:
            return []

    with pytest.raises(PluginError, match=r"broken: its own check\(\) failed: KeyError"):
        refuse_unfit([Broken(api.Config(), api.Runtime("cpu", Path))])


def test_models_are_hashed_or_with_quick_only_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = add_model(monkeypatch, tmp_path, "mended")
    whole = file.read_bytes()
    setting = "scorer.model=mended"
    assert by_id(parts.check_models(context(tmp_path, setting)))["model.mended"].state == "ok"
    file.write_bytes(whole[:-1] + b"\1")
    assert by_id(parts.check_models(context(tmp_path, setting)))["model.mended"].state == "fault"
    quick = by_id(parts.check_models(context(tmp_path, setting, quick=True)))["model.mended"]
    assert (quick.state, "nothing was hashed" in quick.detail) == ("ok", True)
    file.write_bytes(whole[:-1])
    quick = by_id(parts.check_models(context(tmp_path, setting, quick=True)))["model.mended"]
    assert (quick.state, f"has {len(whole) - 1} bytes" in quick.detail) == ("fault", True)


def test_a_model_for_something_else_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    add_model(monkeypatch, tmp_path, "painter", role="generator")
    mine = context(tmp_path, "captioner.model=painter")
    mine.weights = Weights.default()
    found = by_id(parts.check_models(mine))["model.painter"]
    assert (found.state, found.detail) == (
        "fault",
        "the model 'painter' is for a generator, and captioner.model wants one for a captioner",
    )
    assert "microworld-blip2" in found.remedy


# --- what is studied ---------------------------------------------------------------------------------


def test_probing_images_are_counted_and_tried(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 16)
    mine = context(tmp_path, f"probing.set={photos}")
    assert by_id(work.check_probing(mine))["probing"].state == "ok"
    assert (mine.images, mine.pixels) == (16, 144)
    (photos / "000.png").write_bytes(b"nothing")
    found = by_id(work.check_probing(mine))["probing"]
    assert (found.state, "16 images, 7 of 8 tried open; 000.png" in found.detail) == ("warning", True)


def test_a_target_that_cannot_be_built_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("my_nets.py").write_text("def net():\n    raise RuntimeError('no weights')\n")
    monkeypatch.delitem(__import__("sys").modules, "my_nets", raising=False)
    options = {"target.name": "my_nets:net", "target.layers": ["a"]}
    registry = Registry.load()
    run = read_run("default", registry, options=options)
    found = by_id(work.check_target(Context(run, registry, Weights.default(), tmp_path, tmp_path)))
    assert found["target"].state == "fault"
    assert "my_nets:net cannot be built: RuntimeError: no weights" in found["target"].detail


CHANCE = """
import torch
import toys

class Dropping(toys.Net):
    def forward(self, x):
        return torch.nn.functional.dropout({dropped}, 0.5, {always})

def net():
    return Dropping(), toys.preprocess
"""


@pytest.mark.parametrize(
    ("dropped", "always", "state"),
    [("self.units(x)", True, "ok"), ("self.units(x)", False, "ok"), ("self.units({0})", True, "fault")],
)
def test_chance_in_the_forward_pass_is_a_fault_of_the_layers_behind_it(
    dropped: str, always: bool, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Dropout that `eval()` leaves on. What comes after the layer changes nothing of it."""
    input_ = "torch.nn.functional.dropout(x, 0.5, True)"
    Path("my_nets.py").write_text(CHANCE.format(dropped=dropped.format(input_), always=always))
    monkeypatch.delitem(__import__("sys").modules, "my_nets", raising=False)
    options = {"target.name": "my_nets:net", "target.layers": ["units"]}
    registry = Registry.load()
    run = read_run("default", registry, options=options)
    found = by_id(work.check_target(Context(run, registry, Weights.default(), tmp_path, tmp_path)))["layer.units"]
    assert found.state == state
    if state == "fault":
        assert "layer units gives other activations each time for the same image" in found.detail
        assert "dropout that eval() leaves on" in found.remedy


# --- room --------------------------------------------------------------------------------------------


def test_too_little_memory_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = context(tmp_path)
    mine.target_bytes = 10**6
    monkeypatch.setattr(room, "free_memory", lambda device: (10**8, 10**9))
    found = by_id(room.check_memory(mine))
    assert {check.state for check in found.values()} == {"fault"}
    assert found["memory.generator"].detail.endswith("100 MB free on cpu")
    assert "--set generator.model=NAME" in found["memory.generator"].remedy
    monkeypatch.setattr(room, "free_memory", lambda device: (10**9, 10**9))
    assert {check.state for check in room.check_memory(mine)} == {"ok"}


def test_a_backend_may_know_its_memory_better(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = context(tmp_path)
    monkeypatch.setattr(type(mine.registry.find("scorer", "coverage").cls), "memory", None, raising=False)
    monkeypatch.setattr(mine.registry.find("scorer", "coverage").cls, "memory", lambda self: 5 * 10**9)
    monkeypatch.setattr(room, "free_memory", lambda device: (4 * 10**9, 10**10))
    found = by_id(room.check_memory(mine))["memory.scorer"]
    assert found.detail == "5.0 GB, as the backend says; 4.0 GB free on cpu"
    assert found.state == "fault"


class Settings(api.Config):
    model: api.ModelName = "tiny"


def test_a_backend_that_says_nothing_is_guessed_from_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    size = add_model(monkeypatch, tmp_path, "tiny").stat().st_size
    need = estimate(Settings(), Weights.default(), "cpu")
    assert need is not None
    assert (need.weights, need.work, need.sure) == (size, 512 * 2**20, False)
    assert estimate(api.Config(), Weights.default(), "cpu") is None


def test_a_backend_whose_model_is_not_here_is_guessed_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = add_model(monkeypatch, tmp_path, "tiny")
    size = file.stat().st_size
    file.unlink()
    monkeypatch.setattr(room, "free_memory", lambda device: (10**8, 10**9))
    found = by_id(room.check_memory(context(tmp_path, "scorer.model=tiny")))["memory.scorer"]
    assert (found.state, found.detail.startswith(gigabytes(size))) == ("warning", True)
    assert "as large as their files" in found.detail


def test_weights_of_unknown_size_are_not_guessed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "free_memory", lambda device: (10**12, 10**12))
    found = by_id(room.check_memory(context(tmp_path, "scorer.model=resnet-50")))
    assert (found["memory.scorer"].state, "not known" in found["memory.scorer"].detail) == ("warning", True)
    assert found["memory.captioner"].state == "ok"


def test_of_two_copies_of_the_same_weights_one_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "two"
    for part, dtype in (("unet/w.safetensors", torch.float32), ("unet/w.fp16.safetensors", torch.float16)):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        save_file({"a": torch.zeros(8, dtype=dtype)}, folder / part)
    (folder / "vae").mkdir()
    save_file({"b": torch.zeros(5)}, folder / "vae" / "w.safetensors")
    files = tuple(_pin(folder, path) for path in ("unet/w.safetensors", "unet/w.fp16.safetensors", "vae/w.safetensors"))
    model = LockedModel(
        name="two", role="generator", source=f"hub:a/b@{'0' * 40}", licence="mit", gated=False, files=files
    )
    weights = Weights(tmp_path / "lock", {"two": model})
    need = estimate(Settings(model="two"), weights, "cpu")
    assert need is not None
    assert need.weights == sum((folder / part).stat().st_size for part in ("unet/w.safetensors", "vae/w.safetensors"))


def test_the_machine_has_memory() -> None:
    free, total = free_memory("cpu")
    assert 10**8 < free <= total


def test_a_full_disk_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = context(tmp_path)
    mine.units, mine.width, mine.images, mine.pixels = 71, 71, 4000, 4096.0
    need = room.PNG_BYTES * (4096 * (71 * 10 + 512) + 32 * 32 * 71 * 8 * 10) + 4 * 71 * 71 * 8 * 10
    need += room.UNIT_BYTES * 71
    for free, state in ((need * 2, "ok"), (need * 0.8, "warning"), (need * 0.4, "fault")):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=int(free)))
        found = by_id(room.check_disk(mine))["disk.store"]
        assert found.state == state, found
        assert "at most 28 MB for 71 units;" in found.detail
    assert "DND_STORE" in found.remedy
    mine.run = read_run(None, mine.registry, settings=["generator.width=512", "generator.height=512"])
    assert "at most 3.3 GB for 71 units;" in by_id(room.check_disk(mine))["disk.store"].detail


def test_a_folder_that_cannot_be_written_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(room.tempfile, "TemporaryFile", refuse)
    found = by_id(room.check_folders(context(tmp_path)))
    assert {found[name].state for name in ("folder.out", "folder.store", "folder.cache")} == {"fault"}
    assert "Read-only file system" in found["folder.out"].detail
    assert "--out" in found["folder.out"].remedy


def test_a_run_folder_that_is_taken_is_a_fault(tmp_path: Path) -> None:
    mine = context(tmp_path)
    assert by_id(room.check_run_folder(mine))["run-folder"].state == "ok"
    assert not mine.out.exists()
    with only_here(mine.out):
        found = by_id(room.check_run_folder(mine))["run-folder"]
        assert (found.state, "another run is at work in" in found.detail) == ("fault", True)
    mine.out.mkdir(parents=True)
    (mine.out / "run.toml").write_text(mine.run.to_toml())
    assert "holds this run" in by_id(room.check_run_folder(mine))["run-folder"].detail
    (mine.out / "run.toml").write_text("seed = 5\n")
    found = by_id(room.check_run_folder(mine))["run-folder"]
    assert (found.state, "--out" in found.remedy) == ("fault", True)
    mine.fresh = True
    assert by_id(room.check_run_folder(mine))["run-folder"].state == "ok"


def test_a_lock_that_a_killed_run_left_blocks_nobody(tmp_path: Path) -> None:
    mine = context(tmp_path)
    mine.out.mkdir(parents=True)
    (mine.out / ".lock").write_text("{}")
    assert by_id(room.check_run_folder(mine))["run-folder"].state == "ok"
    assert mine.out.is_dir()


def test_files_without_a_digest_are_a_fault(tmp_path: Path) -> None:
    (tmp_path / "models" / "loose").mkdir(parents=True)
    model = LockedModel(
        name="loose",
        role="scorer",
        source=f"hub:a/b@{'0' * 40}",
        licence="mit",
        gated=False,
        files=(LockedFile(path="model.safetensors"),),
    )
    mine = context(tmp_path, "scorer.model=loose")
    mine.weights = Weights(tmp_path / "lock", {**mine.weights.by_name, "loose": model})
    for quick in (False, True):
        mine.quick = quick
        found = by_id(parts.check_models(mine))["model.loose"]
        assert (found.state, bool(found.remedy)) == ("fault", True)


def test_the_guide_names_every_line(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "long-runs.md").read_text("utf-8")
    mine = context(tmp_path)
    mine.units, mine.target_bytes = 71, 1
    looks = (machine.check_python, machine.check_devices, parts.check_backends, room.check_memory, room.check_disk)
    for look in (*looks, machine.check_network, room.check_folders, room.check_run_folder):
        for check in look(mine):
            assert f"`{check.id}`" in guide or check.id.startswith("memory."), check.id


def test_the_check_of_the_guide_works(tmp_path: Path) -> None:
    code = types.ModuleType("guide")
    vars(code)["api"] = api
    exec(block("plugins.md", "python", "def check"), vars(code))
    config = SimpleNamespace(python=tmp_path / "python")
    guided = type("Guided", (api.Plugin,), {"name": "guided", "check": code.check})
    (fault,) = parts.faults_of(guided(config, api.Runtime("cpu", Path)))
    assert (str(fault), fault.hint[:10]) == (f"there is no {config.python}", "Set python")
    config.python.touch()
    assert parts.faults_of(guided(config, api.Runtime("cpu", Path))) == []
