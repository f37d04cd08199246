"""The command line's contract: what it prints where, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from commandline import Outcome
from outside import CAPTIONER, install

import dnd.cli.main
from dnd.analysis.group import DISTANCE
from dnd.analysis.prune import LEAST
from dnd.api import Label, Unit
from dnd.errors import UsageError
from dnd.results.verdict import Verdict


def finished(folder: Path, exit_code: int) -> SimpleNamespace:
    """What the command line asks of a `dnd.results.run.RunFolder`."""
    empty: dict[str, Any] = {"unreadable": (), "labels": [], "notes": (), "grading": None, "facts": {}, "seconds": 0.0}
    empty["verdicts"] = {}
    return SimpleNamespace(folder=folder, exit_code=exit_code, summary=lambda page: "{}", **empty)


@pytest.fixture
def execute(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces the pipeline: records what it was asked; its result has the exit code set in `answer`."""
    import dnd.pipeline.execute

    calls: list[Any] = []

    def record(run: Any, out: Path, **rest: Any) -> Any:
        calls.append((run, out, rest))
        return finished(out, exit_code=3)

    monkeypatch.setattr(dnd.pipeline.execute, "execute", record)
    report = SimpleNamespace(page=Path("report/index.html"))
    monkeypatch.setattr("dnd.results.report.build.build_report", lambda runs, **rest: report)
    return calls


def test_python_m_dnd_is_dnd() -> None:
    done = subprocess.run([sys.executable, "-m", "dnd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("dnd, version ")
    assert dnd.__version__ in done.stdout


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "run", "--nonsense")
    assert outcome.code == 2
    assert "No such option" in outcome.err


def every_command(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, (*path, name))


def test_help_is_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option says what it does, and no command's line in a list is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    for path, command in every_command(dnd.cli.main.cli):
        silent = [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
        assert not silent, path
        listed = Outcome(capsys, *path, "--help").out.partition("Commands:")[2]
        assert "..." not in listed, listed


@pytest.mark.parametrize(("command", "default"), [("group", DISTANCE), ("prune", LEAST)])
def test_help_tells_the_defaults_of_nearness(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, default: float
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert f"[default: {default};" in Outcome(capsys, command, "--help").out


def test_a_mistake_is_an_error_and_a_hint_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(capsys, "run", "nowhere.toml")
    assert outcome.code == 1
    assert outcome.err.startswith("Error: there is no run file nowhere.toml\nHint: ")
    assert "Traceback" not in outcome.err
    assert outcome.out == ""


def test_texts_that_are_no_utf8_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name may be anything; but no run file could hold it."""
    folder = tmp_path / "\udcff"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    given = ["config", "--target", "microworld", "--layer", "concepts"]
    for where in (folder, Path()):
        monkeypatch.chdir(folder)
        outcome = Outcome(capsys, *given, "--probe", str(where))
        assert outcome.code == 1
        assert r"is no UTF-8, which a run file is" in outcome.err
    outcome = Outcome(capsys, "find", str(folder), "\udcff")
    assert (outcome.code, outcome.err) == (
        1,
        "Error: '\\udcff' is no UTF-8\nHint: Write it in UTF-8, or rename the file or folder.\n",
    )


def test_a_bug_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    import dnd.plugin.registry

    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(dnd.plugin.registry.Registry, "load", fail)
    with pytest.raises(ZeroDivisionError):
        dnd.cli.main.main(["plugins"])


@pytest.mark.parametrize("setting", ["seed", "=1"])
def test_a_malformed_setting_is_named(capsys: pytest.CaptureFixture[str], setting: str) -> None:
    outcome = Outcome(capsys, "run", "--set", setting)
    assert outcome.code == 1
    assert f"--set {setting}" in outcome.err


def test_all_options_reach_the_run(capsys: pytest.CaptureFixture[str], execute: list[Any], tmp_path: Path) -> None:
    outcome = Outcome(
        capsys, "run", "default", "--units", "0-3", "--probe", str(tmp_path), "--set", "images.n=3",
        "--set", "captioner.num_beams=2", "--seed", "0", "--device", "cpu", "--layer", "concepts", "--layer", "trunk",
        "--out", str(tmp_path / "out"), "--fresh",
    )  # fmt: skip
    assert outcome.code == 3
    run, out, rest = execute[0]
    assert (run.target.units, run.target.layers, run.target.name) == ("0-3", ("concepts", "trunk"), "microworld")
    assert [(c.kind, c.name) for c in run.probing] == [("folder", str(tmp_path))]
    assert (run.images.n, run.captioner.config.num_beams, run.seed, run.device) == (3, 2, 0, "cpu")
    assert run.captioner.config.model == "microworld-blip2"
    assert out == tmp_path / "out"
    assert rest["fresh"] is True


def test_labels_are_verified_after_the_run_where_the_run_file_says_so(
    capsys: pytest.CaptureFixture[str], execute: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verified: list[Any] = []
    monkeypatch.setattr("dnd.evaluation.verify.verify_run", lambda folder, **rest: verified.append((folder, rest)))
    monkeypatch.setattr("dnd.results.run.RunFolder", lambda folder: finished(folder, exit_code=0))
    label = Label(Unit("concepts", 0), "labelled", (("red", 1.0),))
    monkeypatch.setattr(
        "dnd.pipeline.execute.execute",
        lambda run, out, **rest: SimpleNamespace(**{**vars(finished(out, 3)), "labels": [label]}),
    )
    assert Outcome(capsys, "run", "--out", str(tmp_path), "--set", "verify.n=5").code == 0
    assert [(folder, rest["images"]) for folder, rest in verified] == [(tmp_path, 5)]
    Outcome(capsys, "run", "--out", str(tmp_path))
    Outcome(capsys, "run", "--out", str(tmp_path), "--set", "verify.n=5", "--shard", "1/2")
    assert len(verified) == 1
    few = Outcome(capsys, "run", "--out", str(tmp_path), "--set", "verify.n=2")
    assert (few.code, "a verdict needs 3 images of a name" in few.err) == (1, True)
    no_generator = Outcome(capsys, "run", "--method", "milan", "--out", str(tmp_path), "--set", "verify.n=5")
    assert (no_generator.code, "verify.n: the run has no generator" in no_generator.err) == (1, True)


def test_verdicts_are_one_json_text(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = {Unit("fc", n): Verdict(word="verified", concept="lake", n_images=6, auc=0.91234567) for n in (3, 5)}
    monkeypatch.setattr("dnd.evaluation.verify.verify_run", lambda *_, **__: verdicts)
    found = json.loads(Outcome(capsys, "verify", str(tmp_path), "--json").out)
    assert [(one["layer"], one["unit"], one["word"], one["images"], one["auc"]) for one in found] == [
        ("fc", 3, "verified", 6, 0.9123),
        ("fc", 5, "verified", 6, 0.9123),
    ]


def test_run_folders_of_one_second_do_not_collide(
    capsys: pytest.CaptureFixture[str], execute: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260102-030405")
    for _ in range(2):
        Outcome(capsys, "run")
        execute[-1][1].mkdir(parents=True)
    assert [str(call[1]) for call in execute] == ["runs/20260102-030405", "runs/20260102-030405-2"]


def test_ctrl_c_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, execute: list[Any]
) -> None:
    def interrupt(*given: Any, **rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dnd.pipeline.execute.execute", interrupt)
    outcome = Outcome(capsys, "run")
    assert outcome.code == 1
    assert "the same command goes on from there" in outcome.err


def test_errors_of_the_pipeline_are_printed_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, execute: list[Any]
) -> None:
    def fail(*given: Any, **rest: Any) -> None:
        raise UsageError("there is no layer 'x'", "Did you mean 'y'?")

    monkeypatch.setattr("dnd.pipeline.execute.execute", fail)
    outcome = Outcome(capsys, "run")
    assert (outcome.code, outcome.err) == (1, "Error: there is no layer 'x'\nHint: Did you mean 'y'?\n")


_NOISY = """
import os, subprocess, sys
from dnd.cli.main import main
from dnd.plugin.registry import Registry

real = Registry.load.__func__

def load(cls):
    os.write(1, b"noise")
    subprocess.run([sys.executable, "-c", "print('noise')"], check=True)
    return real(cls)

Registry.load = classmethod(load)
main(["plugins", "--json"])
"""


def test_json_is_not_mixed_with_what_libraries_and_children_write() -> None:
    done = subprocess.run([sys.executable, "-c", _NOISY], capture_output=True, text=True, check=True)
    assert {row["kind"] for row in json.loads(done.stdout)} > {"captioner", "scorer"}
    assert done.stderr.count("noise") == 2


def test_what_plugins_print_as_they_are_imported_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, tmp_path, "chatty-plugin", "print('hello')\n" + CAPTIONER.format(name="chatty"))
    found = Outcome(capsys, "plugins", "--json")
    assert "chatty" in {row["name"] for row in json.loads(found.out)}
    assert "hello" in found.err


def test_json_is_not_mixed_with_what_backends_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, execute: list[Any]
) -> None:
    def chat(*given: Any, **rest: Any) -> Any:
        print("loading shard 1 of 2")
        return finished(Path("x"), exit_code=0)

    monkeypatch.setattr("dnd.pipeline.execute.execute", chat)
    outcome = Outcome(capsys, "run", "--json")
    assert (outcome.out, outcome.err) == ("{}\n", "loading shard 1 of 2\n")


def test_a_dry_run_prints_the_plan_and_touches_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, execute: list[Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = Outcome(capsys, "run", "--dry-run", "--units", "0-3", "--set", "images.n=3", "--set", "verify.n=5")
    assert (outcome.code, outcome.err) == (0, "")
    for word in (
        "microworld",
        "concepts; units 0-3",
        "units = axis 1 (71), map 16x16",
        "blip2",
        "microworld-sdxl",
        "images: 3",
        "captions",
        "scores",
        "120",  # of 4 units, 6 names, 5 images
        "5 new images of each label",
    ):
        assert word.replace("images: 3", "3 of each distinct candidate") in outcome.out
    assert execute == []
    assert list(tmp_path.iterdir()) == []


def test_plugins_lists_what_is_installed_and_what_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "acme-words", CAPTIONER.format(name="acme"))
    install(monkeypatch, tmp_path, "bad-one", "raise RuntimeError('no luck')")
    rows = json.loads(Outcome(capsys, "plugins", "--json").out)
    found = {(r["kind"], r["name"]): r for r in rows}
    assert found["captioner", "acme"] == {
        "kind": "captioner",
        "name": "acme",
        "distribution": "acme-words",
        "version": "1.2",
        "state": "ok",
        "reason": "",
        "description": "",
    }
    assert found["", "bad-one"]["state"] == "broken"
    assert found["captioner", "blip2"]["distribution"] == "dnd-describe"
    table = Outcome(capsys, "plugins")
    assert table.code == 0
    assert "RuntimeError: no luck" in table.out


def test_models_list_and_verify(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DND_MODELS", str(tmp_path))
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    listed = Outcome(capsys, "models", "list")
    assert "sdxl-base-1.0" in listed.out
    assert "7,108 missing" in listed.out
    assert max(len(line.rstrip()) for line in listed.out.splitlines()) <= 80
    assert Outcome(capsys, "models", "verify").code == 0
    missing = Outcome(capsys, "models", "verify", "sdxl-base-1.0", "sdxl-bas")
    assert missing.code == 1
    assert "'sdxl-base-1.0' is not here" in missing.err
    assert "Did you mean 'sdxl-base-1.0'?" in missing.err


def test_without_the_full_size_models_the_small_ones_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DND_MODELS", str(tmp_path))
    words = [
        "run",
        "--target",
        "microworld",
        "--layer",
        "concepts",
        "--probe",
        "microworld",
        "--out",
        str(tmp_path / "x"),
    ]
    missing = Outcome(capsys, *words)
    assert missing.code == 1
    assert "'blip2-opt-2.7b' is not here" in missing.err
    assert "Hint: Without a GPU: `dnd run photos` with the same options" in missing.err
    assert "`dnd run photos`" not in Outcome(capsys, "run", "full", *words[1:]).err, "a run file was chosen"


def test_models_lock_pins_package_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lock = tmp_path / "models.lock"
    lock.write_bytes(Path("models.lock").read_bytes())
    monkeypatch.setattr("dnd.models.weights.lock_path", lambda: lock)
    folder = tmp_path / "site" / "carrier" / "weights"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "model.safetensors").write_bytes(b"abc")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    outcome = Outcome(capsys, "models", "lock", "carried", str(folder), "--role", "scorer")
    assert outcome.code == 0
    assert "package:carrier/weights" in outcome.out
    verified = Outcome(capsys, "models", "verify", "carried")
    assert (verified.code, verified.out) == (0, f"carried: ok, {folder}\n")


@pytest.mark.parametrize("where", ["/dev/full", "pipe", "terminal"])
def test_what_is_printed_into_a_void_stops_no_work(where: str) -> None:
    """A terminal that was closed, `| head`, a full disk: rich would end the process at the next line."""
    script = """
import sys
from dnd.cli.console import make_console
from dnd.cli.screen import open_screens
open_screens()
console = make_console()
sys.stdin.read()  # until the other end is gone
for n in range(3):
    console.print("x" * 100_000)
print("done", file=sys.stderr)
"""
    if where == "/dev/full":
        ends = [os.open(where, os.O_WRONLY)]
    else:
        ends = list(os.pipe() if where == "pipe" else os.openpty())
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    child = subprocess.Popen(command, stdin=pipe, stdout=ends[-1], stderr=pipe)
    for end in ends:
        os.close(end)
    _, said = child.communicate()
    assert child.returncode == 0, said
    assert said.endswith(b"done\n")
    assert (b"cannot be written" in said) == (where != "pipe")


@pytest.mark.parametrize(("word", "refined"), [("too narrow", "3,7"), ("verified", "3")])
def test_labels_that_a_better_one_may_be_found_for_are_refined(
    capsys: pytest.CaptureFixture[str],
    execute: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    word: Any,
    refined: str,
) -> None:
    from dnd.config.read import read_run
    from dnd.plugin.registry import Registry

    words = {3: "one of several", 5: "not driven", 7: word}
    found = {Unit("concepts", at): Verdict(concept="red", word=own) for at, own in words.items()}
    monkeypatch.setattr("dnd.evaluation.verify.verify_run", lambda *_, **rest: found)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text(read_run("default", Registry.load()).to_toml())
    outcome = Outcome(capsys, "verify", str(tmp_path / "run"), "--refine", str(tmp_path / "better"), "--device", "cpu")
    assert outcome.code == 0, outcome.err
    ((run, out, _),) = execute
    assert (run.method.name, run.method.config.units, run.general.device) == ("refine", refined, "cpu")
    assert out == tmp_path / "better"
    assert f"dnd verify {out}" in outcome.err


def test_nothing_is_refined_where_no_verdict_asks_for_it_or_the_run_cannot_be(
    capsys: pytest.CaptureFixture[str], execute: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dnd.config.read import read_run
    from dnd.plugin.registry import Registry

    asked: list[Any] = []
    monkeypatch.setattr("dnd.evaluation.verify.verify_run", lambda *given, **rest: asked.append(given) or {})
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "run.toml"
    file.write_text(read_run("default", Registry.load()).to_toml())
    arguments = ("verify", str(tmp_path / "run"), "--refine", str(tmp_path / "better"))
    outcome = Outcome(capsys, *arguments)
    assert (outcome.code, len(asked), execute) == (0, 1, [])
    assert "nothing to refine" in outcome.err
    outcome = Outcome(capsys, "verify", str(tmp_path / "run"), "--refine", str(tmp_path / "run"))
    assert (outcome.code, len(asked)) == (1, 1), "before anything is generated"
    assert "is the run itself" in outcome.err
    file.write_text(read_run("default", Registry.load(), options={"scorer.backend": "mean"}).to_toml())
    outcome = Outcome(capsys, *arguments)
    assert (outcome.code, len(asked)) == (1, 1), "before anything is generated"
    assert "refine needs a scorer that sees candidates" in outcome.err
