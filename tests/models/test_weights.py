"""models.lock is strict; a name becomes a folder only if every byte is what was pinned."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from safetensors.numpy import save

from dnd.cli.main import cli
from dnd.config.read import examine_run, read_run
from dnd.errors import ModelError
from dnd.models.fetch import fetch
from dnd.models.lock import lock_folder, lock_own
from dnd.models.lockfile import LockedFile, LockedModel, write_lock
from dnd.models.origins import FolderOrigin
from dnd.models.pack import pack, unpack
from dnd.models.weights import Weights
from dnd.plugin.registry import Registry
from dnd.store import digests

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "sub/model.safetensors": save({"weight": np.zeros(3, np.float32)})}


def pin(path: str, data: bytes) -> LockedFile:
    return LockedFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def hub_model(name: str = "tiny", gated: bool = False, files: dict[str, bytes] = FILES) -> LockedModel:
    return LockedModel(
        name=name,
        role="captioner",
        source=f"hub:owner/{name}@{REVISION}",
        licence="mit",
        gated=gated,
        files=tuple(pin(path, data) for path, data in files.items()),
    )


def fill(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DND_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """A lock file with the hub model `tiny`, whose files are in the store."""
    write_lock(tmp_path / "models.lock", {"tiny": hub_model()})
    fill(tmp_path / "models" / "tiny")
    return Weights.read(tmp_path / "models.lock")


def refusal(weights: Weights, name: str = "tiny") -> str:
    with pytest.raises(ModelError) as caught:
        weights.resolve(name)
    return f"{caught.value} {caught.value.hint}"


def test_a_whole_model_resolves_to_its_folder(weights: Weights, tmp_path: Path) -> None:
    assert weights.state("tiny") == "here"
    assert weights.resolve("tiny") == tmp_path / "models" / "tiny"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_bytes(b"[]"), "config.json has the sha256 4f53cda18c2baa0c"),
        (lambda f: (f / "config.json").write_bytes(b"{} "), "config.json has 3 bytes, not 2"),
        (lambda f: (f / "adapter_config.json").write_bytes(b"{}"), "does not list for 'tiny': adapter_config.json"),
        (lambda f: (f / "sub/pytorch_model.bin").write_bytes(b"x"), "sub/pytorch_model.bin"),
        (lambda f: (f / "modeling.PY").write_bytes(b"x"), "modeling.PY"),
    ],
)
def test_what_is_not_pinned_is_refused(weights: Weights, tmp_path: Path, spoil, words: str) -> None:
    weights.resolve("tiny")
    spoil(tmp_path / "models" / "tiny")
    assert words in refusal(weights)


def test_the_state_tells_of_missing_and_short_files(weights: Weights, tmp_path: Path) -> None:
    config = tmp_path / "models" / "tiny" / "config.json"
    config.write_bytes(b"{")
    assert weights.state("tiny") == "incomplete"
    config.unlink()
    assert weights.state("tiny") == "incomplete"
    (tmp_path / "models" / "tiny").rename(tmp_path / "elsewhere")
    assert weights.state("tiny") == "missing"


def test_what_no_loader_reads_is_no_stranger(weights: Weights, tmp_path: Path) -> None:
    fill(tmp_path / "models" / "tiny", {"README.md": b"hi", ".cache/x.json": b"{}", "LICENSE": b"mit"})
    weights.resolve("tiny")


def test_an_absent_hub_model_says_how_to_get_it(tmp_path: Path) -> None:
    write_lock(tmp_path / "models.lock", {"tiny": hub_model(gated=True)})
    text = refusal(Weights.read(tmp_path / "models.lock"))
    for part in (
        "not here",
        str(tmp_path / "models" / "tiny"),
        "dnd models fetch tiny",
        "dnd models unpack",
        "licence",
    ):
        assert part in text


def test_an_unknown_name_gets_a_suggestion(weights: Weights) -> None:
    text = refusal(weights, "tinny")
    assert "no model 'tinny'" in text
    assert "Did you mean 'tiny'?" in text
    assert "dnd models list" in text


def test_a_file_is_hashed_once(weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hashed: list[Path] = []
    real = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path: hashed.append(path) or real(path))
    for file in (tmp_path / "models/tiny").rglob("*"):
        os.utime(file, (1e9, 1e9))  # a file that may still be written to is not remembered
    for _ in range(2):
        weights.resolve("tiny")
    assert len(hashed) == 2
    weights.resolve("tiny", again=True)
    assert len(hashed) == 4
    os.utime(tmp_path / "models/tiny/config.json", ns=(1, 1))
    weights.resolve("tiny")
    assert len(hashed) == 5


def test_a_file_swapped_for_another_of_its_size_and_time_is_noticed(weights: Weights, tmp_path: Path) -> None:
    config = weights.resolve("tiny") / "config.json"
    stat = config.stat()
    (tmp_path / "other").write_bytes(b"[]")
    os.utime(tmp_path / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(tmp_path / "other", config)
    assert (config.stat().st_size, config.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert "has the sha256" in refusal(weights)


@pytest.mark.parametrize("text", ["", "[]", "\x00"])
def test_a_spoilt_memory_only_costs_time(weights: Weights, tmp_path: Path, text: str) -> None:
    fill(tmp_path / "cache", {"digests.sqlite": text.encode() * 999})
    weights.resolve("tiny")
    (tmp_path / "cache" / "digests.sqlite").unlink()
    (tmp_path / "cache" / "digests.sqlite").mkdir()
    weights.resolve("tiny")


def test_the_digest_follows_every_file(tmp_path: Path) -> None:
    models = [
        hub_model("a"),
        hub_model("b"),
        hub_model("c", files={**FILES, "config.json": b"[]"}),
        hub_model("d", files={"configs.json": b"{}", "sub/model.safetensors": b"weights"}),
    ]
    write_lock(tmp_path / "l", {m.name: m for m in models})
    digests = [Weights.read(tmp_path / "l").digest(m.name) for m in models]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_a_model_with_unknown_digests_is_refused_until_locked(tmp_path: Path) -> None:
    model = hub_model().model_copy(update={"own": (pin("m.safetensors", b"weights"), LockedFile(path="config.json"))})
    write_lock(tmp_path / "l", {"tiny": model})
    folder = fill(tmp_path / "models" / "tiny", {"m.safetensors": b"weights", "config.json": b"{}", "merges.txt": b""})
    weights = Weights.read(tmp_path / "l")
    assert weights.state("tiny") == "not pinned"
    assert "dnd models fetch tiny" in refusal(weights)
    with pytest.raises(ModelError, match=r"digests of all files of 'tiny': config\.json"):
        weights.digest("tiny")
    locked = lock_folder(weights, "tiny", folder)
    assert [f.path for f in locked.files] == ["m.safetensors", "config.json", "merges.txt"]
    assert locked.source == model.source
    assert Weights.read(tmp_path / "l").resolve("tiny") == folder
    (folder / "m.safetensors").write_bytes(b"others!")
    with pytest.raises(ModelError, match=r"is not the file that models\.lock pins"):
        lock_folder(weights, "tiny", folder)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package whose import fails, with a model as its data: looking for weights must not import it."""
    fill(tmp_path / "site" / "carrier", {"__init__.py": b"raise RuntimeError"})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return fill(tmp_path / "site" / "carrier" / "weights" / "small")


def test_package_data_is_locked_and_resolved_without_an_import(weights: Weights, package: Path) -> None:
    locked = lock_folder(weights, "small", package, role="generator", licence="Apache-2.0")
    assert locked.source == "package:carrier/weights/small"
    assert [f.path for f in locked.files] == ["config.json", "sub/model.safetensors"]
    again = Weights.read(weights.lock)
    assert list(again.by_name) == ["tiny", "small"]
    assert again.resolve("small") == package
    (package / "config.json").write_bytes(b"[]")
    assert "Reinstall" in refusal(again, "small")
    relocked = lock_folder(again, "small", package)
    assert (relocked.role, relocked.files[0].size) == ("generator", 2)
    assert Weights.read(weights.lock).resolve("small") == package


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    model = hub_model().model_copy(update={"source": "package:nobody_has_this/weights"})
    write_lock(tmp_path / "l", {"tiny": model})
    assert "'nobody_has_this', which is not installed" in refusal(Weights.read(tmp_path / "l"))
    assert Weights.read(tmp_path / "l").state("tiny") == "missing"


def test_only_safe_files_of_a_package_are_locked(weights: Weights, package: Path, tmp_path: Path) -> None:
    (package / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: only \.safetensors"):
        lock_folder(weights, "small", package)
    with pytest.raises(ModelError, match="not inside an importable Python package"):
        lock_folder(weights, "small", fill(tmp_path / "elsewhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no file of a model"):
        lock_folder(weights, "small", tmp_path / "empty")


def test_all_models_that_fail_are_told_at_once(weights: Weights, tmp_path: Path) -> None:
    write_lock(weights.lock, {m.name: m for m in (hub_model(), hub_model("gone"))})
    weights = Weights.read(weights.lock)
    weights.check(["tiny", "tiny"])
    with pytest.raises(
        ModelError, match=r"^2 models cannot be used:\n  the model 'gone'.*\n  there is no model 'none'"
    ):
        weights.check(["tiny", "gone", "none", "gone"])


def test_every_model_that_the_lock_file_carries_in_a_package_is_whole() -> None:
    weights = Weights.read(Path("models.lock"))
    carried = [name for name, model in weights.by_name.items() if model.source.startswith("package:dnd_")]
    assert len(carried) >= 5
    weights.check(carried)


def test_the_users_own_lock_file_adds_and_wins(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "models" / "models.lock"
    other = hub_model(files={"config.json": b"[]"})
    write_lock(own, {"tiny": other, "more": hub_model("more")})
    both = Weights.read(weights.lock, own)
    assert list(both.by_name) == ["tiny", "more"]
    assert both.find("tiny") == other
    monkeypatch.setattr("dnd.models.weights.lock_path", lambda: weights.lock)
    assert Weights.default() == both


def test_an_entry_goes_where_it_can_be_written(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own, before = tmp_path / "models" / "models.lock", weights.lock.read_text()
    both = Weights.read(weights.lock, own)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write to anything
    assert both.record([hub_model("more")]) == own
    assert weights.lock.read_text() == before
    monkeypatch.undo()
    again = Weights.read(weights.lock, own)
    assert list(again.by_name) == ["tiny", "more"] == list(both.by_name)
    with monkeypatch.context() as patch:
        patch.setattr(
            "dnd.models.weights.__file__", str(weights.lock.parent / "models" / "weights.py")
        )  # an installed package's
        assert again.record([hub_model("third")]) == own
    write_lock(own, {"more": hub_model("more")})
    changed = hub_model("more", files={"config.json": b"1"})
    assert again.record([changed]) == own, "what is the user's stays the user's"
    assert again.record([hub_model("third")]) == weights.lock
    assert list(Weights.read(weights.lock).by_name) == ["tiny", "third"]


def test_dnd_lock_names_the_only_lock_file(weights: Weights, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_lock(tmp_path / "models" / "models.lock", {"more": hub_model("more")})
    monkeypatch.setenv("DND_LOCK", str(weights.lock))
    assert list(Weights.default().by_name) == ["tiny"]
    monkeypatch.setenv("DND_LOCK", str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"cannot read .*nowhere: No such file"):
        Weights.default()


# --- models of one's own -----------------------------------------------------------------------------

CONSOLE = Console(quiet=True)
FINETUNED = {
    **FILES,
    "training_args.bin": b"a pickle",
    "sub/optimizer.pt": b"a pickle",
    "modeling.py": b"code",
    "README.md": b"hi",
    ".git/config.json": b"{}",
    "odd:name.json": b"{}",
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return fill(tmp_path / "mine", FINETUNED)


def test_a_folder_of_ones_own_is_locked_under_a_name(weights: Weights, mine: Path, tmp_path: Path) -> None:
    done = lock_own(weights, "private", mine, CONSOLE, role="generator", licence="cc-by-4.0")
    assert (done.brought, sorted(file.path for file in done.model.files)) == (2, sorted(FILES))
    again = Weights.read(weights.lock)
    entry = again.find("private")
    assert (entry.source, entry.role, entry.licence) == ("local", "generator", "cc-by-4.0")
    folder = tmp_path / "models" / "private"
    assert again.resolve("private") == folder
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"config.json", "model.safetensors"}
    (mine / "config.json").write_bytes(b"[]")
    assert again.resolve("private", again=True) == folder, "a copy"
    (folder / "config.json").write_bytes(b"[]")
    text = refusal(again, "private")
    assert "config.json has the sha256" in text
    assert "dnd models fetch private --from FOLDER" in text


@pytest.mark.parametrize(
    ("data", "hint"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"cut", "anew"), (b"", "anew")],
)
def test_weights_that_are_not_whole_are_not_locked(weights: Weights, mine: Path, data: bytes, hint: str) -> None:
    (mine / "sub/model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"model.safetensors is not a whole safetensors file") as caught:
        lock_own(weights, "private", mine, CONSOLE)
    assert hint in caught.value.hint
    assert "private" not in Weights.read(weights.lock).by_name


def test_a_model_of_ones_own_comes_back_from_its_folder_alone(weights: Weights, mine: Path, tmp_path: Path) -> None:
    lock_own(weights, "private", mine, CONSOLE)
    shutil.rmtree(tmp_path / "models" / "private")
    with pytest.raises(ModelError, match="is no hub's, it is of your own"):
        fetch(weights, "private", CONSOLE)
    assert fetch(weights, "private", CONSOLE, FolderOrigin(mine)).brought == 2
    assert weights.resolve("private").is_dir()
    shutil.rmtree(tmp_path / "models" / "private")
    (mine / "config.json").write_bytes(b"[]")
    with pytest.raises(ModelError, match=r"sha256|is not"):
        fetch(weights, "private", CONSOLE, FolderOrigin(mine))
    assert weights.state("private") != "here"


def test_a_model_of_ones_own_can_be_linked(weights: Weights, mine: Path, tmp_path: Path) -> None:
    lock_own(weights, "private", mine, CONSOLE, link=True, exclude=["config.json"])
    file = tmp_path / "models/private/sub/model.safetensors"
    assert file.samefile(mine / "sub/model.safetensors")
    assert [one.path for one in weights.find("private").files] == ["sub/model.safetensors"]


def test_a_lock_of_ones_own_is_repeated_but_never_replaced(weights: Weights, mine: Path, tmp_path: Path) -> None:
    lock_own(weights, "private", mine, CONSOLE, role="scorer")
    assert lock_own(weights, "private", mine, CONSOLE).model.role == "scorer"
    (mine / "config.json").write_bytes(b"[]")
    with pytest.raises(ModelError, match="'private' is locked already, with other files"):
        lock_own(weights, "private", mine, CONSOLE)
    with pytest.raises(ModelError, match="'tiny' is locked already, with other files"):
        lock_own(weights, "tiny", mine, CONSOLE)
    assert Weights.read(weights.lock).resolve("private") == tmp_path / "models" / "private"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"pytorch_model.bin": b"x", "config.json": b"{}"}, "no safetensors among its files"),
        ({}, "no safetensors among its files"),
    ],
)
def test_only_safetensors_are_locked(weights: Weights, tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=words):
        lock_own(weights, "private", fill(tmp_path / "other", files), CONSOLE)
    assert "private" not in Weights.read(weights.lock).by_name


def test_a_name_that_no_lock_takes_is_refused_before_anything_is_copied(
    weights: Weights, mine: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="cannot lock this: name"):
        lock_own(weights, "../up", mine, CONSOLE)
    assert not (tmp_path / "up").exists()


def test_a_model_of_ones_own_is_packed_and_unpacked(
    weights: Weights, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_own(weights, "private", mine, CONSOLE, role="captioner", licence="mit")
    pack(weights, ["private"], tmp_path / "x.tar", CONSOLE)
    monkeypatch.setenv("DND_MODELS", str(tmp_path / "there"))
    write_lock(tmp_path / "there.lock", {})
    there = Weights.read(tmp_path / "there.lock")
    with pytest.raises(ModelError, match="does not know these models"):
        unpack(there, tmp_path / "x.tar", CONSOLE)
    unpack(there, tmp_path / "x.tar", CONSOLE, add=True)
    found = Weights.read(tmp_path / "there.lock")
    assert found.resolve("private") == tmp_path / "there" / "private"
    assert found.digest("private") == weights.digest("private")
    assert (found.find("private").role, found.find("private").licence) == ("captioner", "mit")


def test_the_command_locks_lists_and_verifies_it(mine: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DND_LOCK", str(weights.lock))
    done = CliRunner().invoke(cli, ["models", "lock", "private", str(mine), "--role", "target", "--licence", "mit"])
    assert (done.exit_code, "private: whole, 2 of 2 files fetched" in done.output) == (0, True), done.output
    listed = json.loads(CliRunner().invoke(cli, ["models", "list", "--json"]).output)
    row = next(row for row in listed if row["name"] == "private")
    assert (row["role"], row["state"], row["sources"], row["licence"]) == ("target", "here", ["local"], "mit")
    assert CliRunner().invoke(cli, ["models", "verify", "private"]).output.startswith("private: ok")
    wrong = CliRunner().invoke(cli, ["models", "lock", "other", str(mine), "--role", "painter"])
    assert wrong.exit_code == 2


# --- roles -------------------------------------------------------------------------------------------


def test_a_model_for_something_else_is_refused_with_those_that_fit(weights: Weights, mine: Path) -> None:
    lock_own(weights, "painter", mine, CONSOLE, role="generator")
    lock_own(weights, "anything", mine, CONSOLE)
    weights.check_role("painter", "generator.model", ("generator",))
    weights.check_role("anything", "captioner.model", ("captioner",))
    weights.check_role("painter", "method.model", ())
    with pytest.raises(
        ModelError, match=r"'painter' is for a generator, and captioner\.model wants .* captioner"
    ) as no:
        weights.check_role("painter", "captioner.model", ("captioner",))
    assert no.value.hint == "There are: tiny."


def test_settings_know_what_their_models_may_be_for() -> None:
    run = read_run("default", Registry.load(), settings=["captioner.backend=concept-set", "captioner.model=x"])
    uses = {setting: (name, roles) for name, setting, roles in run.model_uses()}
    assert uses["captioner.model"] == ("x", ("scorer", "encoder"))
    assert uses["summarizer.model"] == ("microworld-llama", ("summarizer",))
    assert uses["target.model"][1] == ("target",)


@pytest.mark.parametrize("runfile", sorted(point.name for point in entry_points(group="dnd.runfiles")))
def test_every_run_file_names_models_of_the_right_role(runfile: str) -> None:
    run, _ = examine_run(runfile, Registry.load(), options={}, settings=[])
    found = Weights.read(Path(__file__).parents[2] / "models.lock")
    for use in run.model_uses():
        found.check_role(*use)
