"""Where `dnd` prints to, where it is called from, and whose folders those are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toys

from dnd.errors import StoreError
from dnd.pipeline.execute import execute
from dnd.store.files import write_atomic

LABEL = "caf\u00e9 \u732b"
SMALL = ["--units", "4", "--set", "probing.count=64", "--set", "images.n=2", "--set", "concepts.n=2"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, of which a label has letters that not every encoding has."""
    folder = tmp_path_factory.mktemp("ran")
    photos = toys.make_photos(folder / "photos", 12)
    execute(toys.toy_run(photos), folder / "run", registry=toys.registry(), live=(toys.Net(), toys.preprocess))
    for name in ("labels.csv", "labels.jsonl"):
        file = folder / "run" / name
        file.write_text(file.read_text("utf-8").replace("red", LABEL), "utf-8")
        assert LABEL in file.read_text("utf-8")
    return folder / "run"


def dnd(*arguments: str, shell: str = "", cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """`shell`: redirections."""
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "dnd", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, cwd=cwd, capture_output=True)


ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
OLD = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [ASCII, LATIN, OLD], ids=["ascii", "latin-1", "C"])
def test_a_stdout_that_cannot_show_a_letter_gets_what_it_can(ran: Path, environment: dict[str, str]) -> None:
    done = dnd("export", str(ran), "--format", "markdown", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf" in done.stdout


@pytest.mark.parametrize("environment", [ASCII, LATIN, OLD, {}], ids=["ascii", "latin-1", "C", "as it is"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_exported_tables_are_the_same_bytes_in_every_locale(ran: Path, kind: str, environment: dict[str, str]) -> None:
    done = dnd("export", str(ran), "--format", kind, **environment)
    assert done.stdout == (ran / f"labels.{kind}").read_bytes()


def test_a_full_disk_under_stdout_fails_what_is_all_output(ran: Path) -> None:
    done = dnd("export", str(ran), shell=">/dev/full")
    assert done.returncode == 1
    assert b"standard output cannot be written: No space left" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("shell", [">&-", "2>&-", ">&- 2>&-", "</dev/null >&- 2>&-", "2>/dev/full", "| head -c 1"])
def test_streams_that_are_closed_or_read_no_more_are_no_fault(ran: Path, shell: str) -> None:
    command = f'"$@" {shell}' if "head" in shell else f'exec "$@" {shell}'
    done = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-m", "dnd", "export", str(ran)], capture_output=True
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_a_closed_stream_is_no_other_files(ran: Path, tmp_path: Path) -> None:
    """What is printed to a number that was free must not land in the file that has it now."""
    done = dnd("export", str(ran), "--out", str(tmp_path / "labels.csv"), shell=">&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "labels.csv").read_bytes() == (ran / "labels.csv").read_bytes()


@pytest.mark.parametrize(
    ("shell", "environment"), [(">/dev/full 2>/dev/full", {}), ("", ASCII)], ids=["full disk", "ascii"]
)
def test_a_finished_run_ends_with_0_whatever_becomes_of_its_words(
    tmp_path: Path, shell: str, environment: dict[str, str]
) -> None:
    done = dnd("run", *SMALL, "--json", "--out", str(tmp_path / "run"), shell=shell, **environment)
    assert done.returncode == 0, done.stderr
    assert b"dots" in (tmp_path / "run" / "labels.csv").read_bytes()


# --- places ------------------------------------------------------------------------------------------


def loop(folder: Path) -> Path:
    """A place that nobody can enter, root included."""
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


@pytest.mark.parametrize("command", [["models", "list"], ["doctor", "--quick", *SMALL], ["run", *SMALL]])
def test_a_home_that_cannot_be_entered_is_a_sentence_or_no_matter(tmp_path: Path, command: list[str]) -> None:
    home = {"HOME": str(loop(tmp_path)), "XDG_DATA_HOME": "", "XDG_CACHE_HOME": ""}
    for name in ("DND_MODELS", "DND_CACHE", "DND_LOCK", "DND_STORE"):
        home[name] = ""
    done = dnd(*command, cwd=tmp_path, **home)
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1)
    if done.returncode and command[0] != "doctor":
        assert b"Error: " in done.stderr
        assert b"Hint: " in done.stderr


@pytest.mark.parametrize(
    ("number", "wanted"),
    [("EACCES", "$DND_STORE"), ("EROFS", "$DND_STORE"), ("ENOTDIR", "another $DND_STORE"), ("ENOSPC", "Free")],
)
def test_the_hint_fits_why_a_store_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, wanted: str
) -> None:
    import errno

    def refuse(*given: object) -> None:
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(StoreError) as caught:
        write_atomic(tmp_path / "x", b"x")
    assert wanted in caught.value.hint
    assert ("Free some space" in caught.value.hint) == (number == "ENOSPC")


def test_a_run_folder_that_is_not_ours_is_a_sentence(tmp_path: Path) -> None:
    done = dnd("run", *SMALL, "--out", "/proc/1/run")
    assert done.returncode == 1
    assert b"Error: cannot use the run folder /proc/1/run" in done.stderr
    assert b"Free some space" not in done.stderr


# --- the current folder ------------------------------------------------------------------------------

SHADOWS = ("numpy", "torch", "dnd_blip2", "dnd_microworld", "click", "pydantic", "sitecustomize", "my_target_helper")


@pytest.mark.parametrize("command", [["run", "--out", "run"], ["doctor", "--quick"]])
def test_what_lies_in_the_current_folder_shadows_nothing(tmp_path: Path, command: list[str]) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in SHADOWS[:-1]:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'shadowed')!r}, 'a').write({name!r} + '\\n')\n")
    (here / "my_target_helper.py").write_text("WIDTH = 4\n")
    (here / "my_target.py").write_text(
        "import my_target_helper\nimport torch\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    layers = torch.nn.Sequential(torch.nn.Conv2d(3, my_target_helper.WIDTH, 3), "
        "torch.nn.AdaptiveAvgPool2d(1))\n"
        "    return layers, lambda image: torch.zeros(3, 8, 8) + sum(image.resize((1, 1)).getpixel((0, 0))) / 765\n"
    )
    little = ["--target", "my_target:net", "--layer", "0", "--units", "1", "--probe", "microworld"]
    less = ["--set", "probing.count=32", "--set", "images.n=2", "--set", "concepts.n=2"]
    done = dnd(command[0], "default", *command[1:], *little, *less, cwd=here)
    assert not (tmp_path / "shadowed").exists(), (tmp_path / "shadowed").read_text()
    if command[0] == "run":
        assert done.returncode in (0, 3), done.stderr
    else:
        assert b"cannot import" not in done.stdout


def test_the_path_is_as_before_once_the_target_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dnd.target.load import load_function

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_only_net.py").write_text(
        "import sys\nimport torch\nSEEN = list(sys.path)\n\n\n"
        "def net():\n    return torch.nn.Identity(), lambda image: image\n"
    )
    before = list(sys.path)
    load_function("my_only_net:net")
    assert sys.path == before
    seen = sys.modules.pop("my_only_net").SEEN
    assert seen[-1] == str(tmp_path)
    assert str(tmp_path) not in seen[:-1]
