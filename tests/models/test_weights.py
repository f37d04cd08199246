"""models.lock is strict; a name becomes a folder only if every byte is what was pinned."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from dnd.errors import ModelError
from dnd.models.lock import lock_folder
from dnd.models.lockfile import LockedFile, LockedModel, write_lock
from dnd.models.weights import Weights
from dnd.store import digests

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "sub/model.safetensors": b"weights"}


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
