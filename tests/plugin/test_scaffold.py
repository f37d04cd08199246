"""`dnd plugins new` and `check`: what is written works, keeps the contract, and says clearly what it will not do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import needs
import pytest
from outside import CAPTIONER, install

from dnd.cli.main import main
from dnd.cli.plugins import KINDS
from dnd.config.read import read_run
from dnd.errors import UsageError
from dnd.plugin.registry import KINDS as ALL_KINDS
from dnd.plugin.registry import Registry
from dnd.plugin.scaffold import write_plugin

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
EXAMPLE = EXAMPLES / "mean-colour"


def dnd(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def put_in_place(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """What `pip install -e` does: the folder on the path, and a dist-info from pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"{name} = {module}\n" for name, module in project["entry-points"]["dnd"].items()]
    (info / "entry_points.txt").write_text("[dnd]\n" + "".join(points))
    monkeypatch.syspath_prepend(str(folder))


# --- what is written ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_whole_and_passes_its_own_tests(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_plugin(f"Own.{kind}", kind, tmp_path / "deep" / "er")
    module = f"own_{kind.replace('-', '_')}"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    workflow = ".github/workflows/test.yml"
    assert found == sorted(
        [workflow, ".gitignore", "README.md", f"{module}.py", "pyproject.toml", "tests/test_contract.py"]
    )
    assert not [path for path in found if re.search(r"\$(?!\{\{ )", (folder / path).read_text())]
    assert f"- run: dnd plugins check Own.{kind} --kind {kind}\n" in (folder / workflow).read_text()
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"own-{kind}"
    assert project["entry-points"]["dnd"] == {f"Own.{kind}": module}
    assert f"dnd-describe>={metadata.version('dnd-describe')}" in project["dependencies"]
    put_in_place(monkeypatch, folder)
    entry = Registry.load().find(kind, f"Own.{kind}")
    assert (entry.distribution, entry.version) == (f"own-{kind}", "0.1.0")
    assert sys.modules[module].DND_API == 1
    own = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)])
    for imported in (module, "test_contract"):
        del sys.modules[imported]
    assert own == 0


@needs.hatchling
def test_it_installs_as_editable_without_a_network(tmp_path: Path) -> None:
    """`pip install --no-build-isolation -e .` needs no package beside hatchling."""
    from hatchling.builders import wheel

    example = shutil.copytree(EXAMPLE, tmp_path / "mean-colour")
    for folder in (write_plugin("own-scorer", "scorer", tmp_path), example):
        (built,) = wheel.WheelBuilder(str(folder)).build(directory=str(tmp_path / "out"), versions=["editable"])
        with zipfile.ZipFile(built) as files:
            (path,) = [name for name in files.namelist() if name.endswith(".pth")]
            assert files.read(path).decode().strip() == str(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_its_readme_shows_a_run_that_is_valid(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_plugin(f"readme-{kind}", kind, tmp_path)
    put_in_place(monkeypatch, folder)
    (line,) = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("dnd run")]
    _, _, name, *words = line.split()
    pairs = list(zip(words[::2], words[1::2], strict=True))
    keys = {"--target": "target.name", "--probe": "probing.sets", "--layer": "target.layers", "--units": "target.units"}
    keys["--method"] = "method.name"
    options = {
        keys.get(o, f"{o[2:]}.backend"): [v] if o in ("--probe", "--layer") else v for o, v in pairs if o != "--set"
    }
    run = read_run(name, Registry.load(), options=options, settings=[v for o, v in pairs if o == "--set"])
    assert f"readme-{kind}" in run.to_toml()
    del sys.modules[f"readme_{kind.replace('-', '_')}"]


def test_a_class_is_named_after_the_plugin_once(tmp_path: Path) -> None:
    folder = write_plugin("tiny-captioner", "captioner", tmp_path)
    assert "class TinyCaptioner(api.Captioner)" in (folder / "tiny_captioner.py").read_text()
    assert (
        "class ImageCaptioner(api.Captioner)" in (write_plugin("image", "captioner", tmp_path) / "image.py").read_text()
    )


def test_the_kinds_to_choose_from_are_those_of_the_registry() -> None:
    assert set(KINDS) == set(ALL_KINDS) - {"encoder"}


@pytest.mark.parametrize(
    "file",
    [
        "mean-colour/mean_colour.py",
        "mean-colour/pyproject.toml",
        "mean-colour/tests/test_contract.py",
        "git-captioner/git_captioner.py",
    ],
)
def test_the_guide_shows_its_examples_as_they_are(file: str) -> None:
    text = (EXAMPLES / file).read_text("utf-8")
    language, name = "toml" if file.endswith("toml") else "python", file.partition("/")[2]
    assert f"`{name}`:\n\n```{language}\n{text}```\n" in (EXAMPLES.parent / "plugins.md").read_text("utf-8")


def test_a_model_of_transformers_is_wrapped_in_forty_lines() -> None:
    assert len((EXAMPLES / "git-captioner" / "git_captioner.py").read_text("utf-8").splitlines()) < 40


@pytest.mark.parametrize(
    ("example", "module", "name"),
    [("mean-colour", "mean_colour", "mean-colour"), ("git-captioner", "git_captioner", "git")],
)
def test_the_examples_of_the_guide_pass_their_tests(
    example: str, module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLES / example, folder, ignore=shutil.ignore_patterns("__pycache__"))
    put_in_place(monkeypatch, folder)
    entry = Registry.load().find("captioner", name)
    assert (entry.distribution, entry.version) == (f"dnd-{example}", "0.1")
    own = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)])
    for imported in (module, "test_contract"):
        del sys.modules[imported]
    assert own == 0


# --- what it will not do ---


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a b", "is no name for a package"),
        ("../up", "is no name for a package"),
        ("-x", "is no name for a package"),
        ("x-", "is no name for a package"),
        ("", "is no name for a package"),
        ("größe", "is no name for a package"),
        ("2d", "which Python cannot import"),
        ("class", "which Python cannot import"),
        ("json", "stand in the way"),
        ("conftest", "stand in the way"),
        ("numpy", "is installed already"),
        ("dnd-blip2", "'dnd_blip2' is installed already"),
        ("scikit-image", "a package 'scikit-image' is installed already"),
        ("blip2", "there is a captioner 'blip2' already, of dnd-describe"),
    ],
)
def test_a_name_that_cannot_work_is_refused(name: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why.replace("(", r"\(")) as caught:
        write_plugin(name, "captioner", tmp_path)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    status, _, err = dnd(capsys, "plugins", "new", "mine", "--kind", "scorer", "--dir", str(tmp_path))
    assert status == 1
    assert "exists already" in err
    assert "Hint: Choose another NAME" in err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    status, _, err = dnd(
        capsys, "plugins", "new", "other", "--kind", "scorer", "--dir", str(tmp_path / "mine" / "notes.txt")
    )
    assert status == 1
    assert "Traceback" not in err


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = dnd(capsys, "plugins", "new", "next-one", "--kind", "scorer", "--dir", str(tmp_path))
    assert status == 0
    assert f"cd {tmp_path / 'next-one'}" in out
    assert "pip install -e '.[test]'" in out
    assert dnd(capsys, "plugins", "new", "next-one")[0] == 2


# --- dnd plugins, and its check ---


def test_the_list_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = dnd(capsys, "plugins", "--json")
    assert status == 0
    assert set(json.loads(out)[0]) == {"kind", "name", "distribution", "version", "state", "reason", "description"}
    assert "word-statistics" in dnd(capsys, "plugins")[1]
    assert dnd(capsys, "plugins", "--json", "check", "mean")[0] == 2


def test_a_right_plugin_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = dnd(capsys, "plugins", "check", "topk-squared", "--set", "top=2")
    assert re.fullmatch(rf"topk-squared keeps all {out.count('  ok ')} rules\.", out.splitlines()[-1])
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("scorer topk-squared (dnd-describe ")
    assert "  ok      answers come in order" in lines
    assert len(lines) > 20
    assert "BROKEN" not in out


def test_a_wrong_one_is_told_why(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = CAPTIONER.format(name="silent").replace('"x" * self.config.words', '""')
    install(monkeypatch, tmp_path, "silent-one", code)
    status, out, err = dnd(capsys, "plugins", "check", "silent")
    assert status == 1
    assert "  BROKEN  there is one good answer per item\n          item 0: empty text" in out
    assert "  ok      settings are frozen" in out
    assert "1 rule is broken" in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("meen",), "Did you mean 'mean'?"),
        (("mean", "--kind", "captioner"), "there is no captioner named 'mean'"),
        (("topk-squared", "--set", "tops=2"), "scorer.tops: there is no such setting"),
        (("topk-squared", "--set", "top=few"), "scorer.top: 'few' does not fit"),
        (("microworld", "--set", "count=3"), "--kind"),
        (("coverage", "--set", "model=nothing"), "there is no model 'nothing'"),
    ],
)
def test_what_cannot_be_checked_is_said_before_the_first_rule(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], why: str
) -> None:
    status, out, err = dnd(capsys, "plugins", "check", *arguments)
    assert (status, out) == (1, "")
    assert why in err


def test_a_plugin_for_another_version_is_listed_with_the_reason_and_cannot_be_checked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "late-one", "DND_API = 2\n" + CAPTIONER.format(name="late"))
    rows = json.loads(dnd(capsys, "plugins", "--json")[1])
    (row,) = [row for row in rows if row["distribution"] == "late-one"]
    assert row["state"] == "broken"
    assert "written for version 2 of dnd's plugin interface, this is 1" in row["reason"]
    status, _, err = dnd(capsys, "plugins", "check", "late-one")
    assert status == 1
    assert "version 2 of dnd's plugin interface" in err


def test_check_works_without_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; from dnd.cli.main import main; main(['plugins', 'check', 'mean'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
