"""Fetching from a hub that runs on loopback, and from folders: what arrives is what is pinned, or nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_hub import COMMIT, FakeHub, Repository, serve
from rich.console import Console
from safetensors.numpy import save_file

from dnd.cli import main as cli
from dnd.errors import ModelError
from dnd.models.fetch import Fetched, fetch, store_lock
from dnd.models.lock import lock_own, lock_repository
from dnd.models.lockfile import LockedFile, LockedModel, LockedPart, read_lock, write_lock
from dnd.models.origins import FolderOrigin
from dnd.models.weights import Weights

BIG = b"weights " * 50_000
HUGE = os.urandom(1 << 20) * 24
"""More than huggingface_hub holds in memory before it writes."""
FILES = {"config.json": b"{}", "model.safetensors": BIG, "tokenizer.json": b"[1]", "pytorch_model.bin": b"pickle"}
CONSOLE = Console(quiet=True)


def pin(path: str, data: bytes) -> LockedFile:
    return LockedFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def entry(*files: LockedFile, part: tuple[LockedPart, ...] = (), repo: str = "acme/tiny") -> LockedModel:
    source = f"hub:{repo}@{COMMIT}"
    return LockedModel(name="tiny", role="captioner", source=source, licence="mit", gated=False, files=files, part=part)


PINNED = (pin("config.json", b"{}"), pin("model.safetensors", BIG))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    for name, folder in (("DND_MODELS", "models"), ("DND_CACHE", "cache"), ("HF_HOME", "hf")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # another test may have imported it offline
    with serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.repos["acme/tiny"] = Repository(dict(FILES))
        yield hub


def locked(tmp_path: Path, model: LockedModel) -> Weights:
    tmp_path.mkdir(exist_ok=True)
    write_lock(tmp_path / "models.lock", {model.name: model})
    return Weights.read(tmp_path / "models.lock")


def get(weights: Weights, origin: FolderOrigin | None = None) -> Fetched:
    return fetch(weights, "tiny", CONSOLE, origin)


def refusal(weights: Weights, origin: FolderOrigin | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        get(weights, origin)
    return f"{caught.value} {caught.value.hint}"


def store(tmp_path: Path) -> list[str]:
    """Every whole file in the store."""
    root = tmp_path / "models"
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if path.parts[0] != ".locks")


def test_exactly_the_listed_files_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    weights = locked(tmp_path, entry(*PINNED))
    done = get(weights)
    assert (done.brought, done.pinned, done.lock) == (2, (), None)
    assert store(tmp_path) == ["tiny/config.json", "tiny/model.safetensors"]
    assert (weights.resolve("tiny") / "model.safetensors").read_bytes() == BIG
    asked = len(hub.log)
    assert get(weights).brought == 0
    assert len(hub.log) == asked, "what is here is not asked for"


def test_what_is_not_pinned_is_completed_and_written_down(hub: FakeHub, tmp_path: Path) -> None:
    weights = locked(tmp_path, entry(LockedFile(path="model.safetensors"), LockedFile(path="config.json")))
    done = get(weights)
    assert done.pinned == ("model.safetensors", "config.json", "tokenizer.json"), "the small file that the list lacked"
    assert done.lock == weights.lock
    again = Weights.read(weights.lock)
    assert again.find("tiny").own == (PINNED[1], PINNED[0], pin("tokenizer.json", b"[1]"))
    assert again.resolve("tiny") == tmp_path / "models" / "tiny"


@pytest.mark.parametrize("wrong", [LockedFile(path="model.safetensors", size=5), pin("model.safetensors", BIG[::-1])])
def test_a_pin_that_the_hub_contradicts_is_refused_before_any_download(
    hub: FakeHub, tmp_path: Path, wrong: LockedFile
) -> None:
    text = refusal(locked(tmp_path, entry(PINNED[0], wrong)))
    assert "model.safetensors of acme/tiny has the s" in text
    assert "models.lock pins" in text
    assert [method for method, path, _ in hub.log if method == "GET" and "api/" not in path] == []
    assert store(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "pinned"),
    [("model.safetensors", True), ("config.json", True), ("model.safetensors", False), ("config.json", False)],
)
def test_tampered_bytes_are_refused_and_not_kept(hub: FakeHub, tmp_path: Path, path: str, pinned: bool) -> None:
    files = PINNED if pinned else (LockedFile(path="config.json"), LockedFile(path="model.safetensors"))
    weights = locked(tmp_path, entry(*files))
    hub.sent[path] = FILES[path][::-1]
    text = refusal(weights)
    assert f"{path} of acme/tiny came and" in text
    assert ("has the sha256" if pinned else "is not what the hub describes") in text
    assert f"tiny/{path}" not in store(tmp_path)
    assert not list(tmp_path.rglob("*.part"))
    assert read_lock(weights.lock) == weights.by_name
    hub.sent.clear()
    assert get(weights).model.unpinned == []


def test_a_damaged_file_in_the_store_is_replaced(hub: FakeHub, tmp_path: Path) -> None:
    weights = locked(tmp_path, entry(*PINNED))
    get(weights)
    (tmp_path / "models/tiny/model.safetensors").write_bytes(BIG[:-1])
    with pytest.raises(ModelError, match="has 399999 bytes, not 400000") as caught:
        weights.resolve("tiny")
    assert "dnd models fetch tiny" in caught.value.hint
    assert get(weights).brought == 1
    weights.resolve("tiny")


def test_a_connection_that_breaks_is_taken_up_again(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["acme/tiny"].files["model.safetensors"] = HUGE
    hub.cut["model.safetensors"] = 23_000_000
    get(locked(tmp_path, entry(pin("model.safetensors", HUGE))))
    assert (tmp_path / "models/tiny/model.safetensors").read_bytes() == HUGE
    assert hub.ranges("model.safetensors")[-1] == f"bytes={20 << 20}-"


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_fetch_goes_on_where_it_was(hub: FakeHub, tmp_path: Path, kill: signal.Signals) -> None:
    hub.repos["acme/tiny"].files["model.safetensors"] = HUGE
    weights = locked(tmp_path, entry(PINNED[0], pin("model.safetensors", HUGE)))
    hub.stall["model.safetensors"] = 23_000_000
    command = [sys.executable, "-m", "dnd", "models", "fetch", "tiny"]
    environment = {**os.environ, "DND_LOCK": str(weights.lock)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    partial = tmp_path / f"models/.fetching/tiny/{COMMIT}/model.safetensors.part"
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_size >= 10 << 20) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(kill)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (1, -kill)
    assert "Traceback" not in errors
    assert kill == signal.SIGKILL or "the same command goes on" in errors
    assert store(tmp_path) == [f".fetching/tiny/{COMMIT}/model.safetensors.part", "tiny/config.json"]
    had = partial.stat().st_size
    hub.stall.clear()
    assert get(weights).brought == 1
    assert hub.ranges("model.safetensors")[-1] == f"bytes={had}-"
    assert had >= 10 << 20
    assert store(tmp_path) == ["tiny/config.json", "tiny/model.safetensors"]


@pytest.mark.parametrize("left", [b"junk" * 200_000, b"x" * 1000])
def test_a_partial_file_that_is_not_ours_is_found_out(hub: FakeHub, tmp_path: Path, left: bytes) -> None:
    weights = locked(tmp_path, entry(*PINNED))
    partial = tmp_path / f"models/.fetching/tiny/{COMMIT}/model.safetensors.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(left)
    if len(left) < len(BIG):
        assert "has the sha256" in refusal(weights)
    get(weights)
    weights.resolve("tiny")


def test_a_gated_repository_says_how_to_get_in(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.repos["acme/tiny"].token = "hf_right"
    weights = locked(tmp_path, entry(*PINNED))
    for token in (None, "hf_wrong"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        text = refusal(weights)
        for part in ("acme/tiny is gated", f"Accept its licence at {hub.url}/acme/tiny", "HF_TOKEN", "hf auth login"):
            assert part in text
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert get(weights).brought == 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda hub: hub.repos.clear(), "has no repository acme/tiny, or keeps it private"),
        (lambda hub: hub.repos["acme/tiny"].files.pop("config.json"), "there is no config.json of acme/tiny@"),
        (lambda hub: setattr(hub.repos["acme/tiny"], "commit", "f" * 40), "acme/tiny has no such revision"),
        (lambda hub: setattr(hub, "down", 500), "refuses config.json of acme/tiny@"),
        (lambda hub: setattr(hub, "down", 403), "HTTP status 403"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(hub: FakeHub, tmp_path: Path, spoil, words: str) -> None:
    weights = locked(tmp_path, entry(*PINNED))
    spoil(hub)
    assert words in refusal(weights)
    assert store(tmp_path) == []


def test_a_hub_that_serves_another_revision_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["acme/tiny"].branches = (COMMIT,)
    hub.repos["acme/tiny"].commit = "f" * 40
    assert f"at revision {'f' * 40}, not {COMMIT}" in refusal(locked(tmp_path, entry(*PINNED)))


def test_without_a_network_the_message_says_what_to_do(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = locked(tmp_path, entry(*PINNED))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    text = refusal(weights)
    assert "cannot reach http://127.0.0.1:9" in text
    assert "dnd models unpack ARCHIVE" in text
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Unset HF_HUB_OFFLINE" in refusal(weights)


def test_a_full_disk_is_noticed_before_the_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 399_000}))
    assert "GB are needed" in refusal(locked(tmp_path, entry(*PINNED)))
    assert hub.ranges("model.safetensors") == []


def test_two_processes_do_not_fetch_one_model_at_once(hub: FakeHub, tmp_path: Path) -> None:
    weights = locked(tmp_path, entry(*PINNED))
    with store_lock("fetching-tiny"):
        assert "another dnd is busy" in refusal(weights)
    get(weights)


def test_parts_come_from_several_repositories_into_one_folder(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["acme/vae"] = Repository({"config.json": b"vae!", "diffusion.safetensors": b"abc"})
    files = (pin("config.json", b"vae!"), LockedFile(path="diffusion.safetensors"))
    vae = LockedPart(source=f"hub:acme/vae@{COMMIT}", under="vae", licence="mit", gated=False, files=files)
    weights = locked(tmp_path, entry(*PINNED, part=(vae,)))
    assert get(weights).pinned == ("vae/diffusion.safetensors",)
    assert (weights.resolve("tiny") / "vae/config.json").read_bytes() == b"vae!"
    assert read_lock(weights.lock)["tiny"].part[0].files[1] == pin("diffusion.safetensors", b"abc")


# --- lock NAME REPO@REV ------------------------------------------------------------------------------


def test_a_repository_is_locked_at_the_commit_of_its_branch(hub: FakeHub, tmp_path: Path) -> None:
    weights = locked(tmp_path, entry(*PINNED))
    done = lock_repository(weights, "mine", "acme/tiny@main", CONSOLE, role="scorer")
    model = Weights.read(weights.lock).find("mine")
    assert model == done.model
    assert (model.source, model.role, model.licence) == (f"hub:acme/tiny@{COMMIT}", "scorer", "apache-2.0")
    assert model.files == (*PINNED, pin("tokenizer.json", b"[1]")), "and no pickle"
    assert Weights.read(weights.lock).resolve("mine") == tmp_path / "models" / "mine"
    assert lock_repository(weights, "mine", f"acme/tiny@{COMMIT}", CONSOLE).brought == 0


def test_odd_names_in_a_repository_are_passed_over(hub: FakeHub, tmp_path: Path) -> None:
    odd = {"../up.json": b"1", "a:b.json": b"1", ".hidden/c.json": b"1", "pytorch_model.bin.index.json": b"{}"}
    hub.repos["acme/tiny"].files |= odd
    done = lock_repository(locked(tmp_path, entry(*PINNED)), "mine", "acme/tiny@main", CONSOLE)
    assert [file.path for file in done.model.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    weights = locked(tmp_path, entry(LockedFile(path="config.json"), PINNED[1]))
    assert get(weights).pinned == ("config.json", "tokenizer.json")
    hub.repos["acme/tiny"].files["CONFIG.json"] = b"{}"
    assert "are one file" in refusal(locked(tmp_path, entry(LockedFile(path="config.json"), PINNED[1])))


def test_patterns_choose_among_a_repositorys_files(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["acme/tiny"].files |= {"model.fp16.safetensors": b"half", "onnx/config.json": b"{}"}
    weights = locked(tmp_path, entry(*PINNED))
    done = lock_repository(
        weights, "half", "acme/tiny@main", CONSOLE, include=["*.json", "*.fp16.*"], exclude=["onnx/*"]
    )
    assert [file.path for file in done.model.files] == ["config.json", "model.fp16.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "place", "words"),
    [
        ("tiny", "acme/other@main", "the model 'tiny' is pinned to hub:acme/tiny@"),
        ("new", "acme/pickled@main", "has no safetensors among these files"),
        ("new", "acme/tiny@nowhere", "acme/tiny has no such revision: acme/tiny@nowhere"),
        ("../up", "acme/tiny@main", "name: "),
    ],
)
def test_what_cannot_be_locked_leaves_everything_as_it_was(
    hub: FakeHub, tmp_path: Path, name: str, place: str, words: str
) -> None:
    hub.repos["acme/other"] = Repository(dict(FILES))
    hub.repos["acme/pickled"] = Repository({"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    weights = locked(tmp_path, entry(*PINNED))
    with pytest.raises(ModelError) as caught:
        lock_repository(weights, name, place, CONSOLE)
    assert words in str(caught.value)
    assert list(read_lock(weights.lock)) == ["tiny"]
    assert store(tmp_path) == []


def test_a_gated_repository_is_locked_as_gated(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.repos["acme/tiny"].token = "hf_right"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert lock_repository(locked(tmp_path, entry(*PINNED)), "g", "acme/tiny@main", CONSOLE).model.gated


# --- a folder as the source --------------------------------------------------------------------------


@pytest.fixture(params=["plain", "cache", "home of the cache"])
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the files: as they are, or as huggingface_hub keeps them."""
    folder = tmp_path / "copy"
    if request.param == "plain":
        inside = folder
    else:
        top = folder / "hub" if request.param == "home of the cache" else folder
        inside = top / "models--acme--tiny" / "snapshots" / COMMIT
    inside.mkdir(parents=True)
    for path, data in FILES.items():
        if request.param == "cache":
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            (folder / "models--acme--tiny" / "blobs").mkdir(exist_ok=True)
            (folder / "models--acme--tiny" / "blobs" / blob).write_bytes(data)
            (inside / path).symlink_to(f"../../blobs/{blob}")
        else:
            (inside / path).write_bytes(data)
    return folder


@pytest.mark.parametrize("link", [False, True])
def test_a_copy_fills_the_store_without_the_hub(hub: FakeHub, tmp_path: Path, copy: Path, link: bool) -> None:
    weights = locked(tmp_path, entry(PINNED[1], LockedFile(path="config.json")))
    done = get(weights, FolderOrigin(copy, link=link))
    assert hub.log == []
    assert done.pinned == ("config.json", "tokenizer.json")
    inside = weights.resolve("tiny") / "model.safetensors"
    assert inside.read_bytes() == BIG
    assert not inside.is_symlink()
    assert inside.stat().st_nlink == (2 if link else 1)


def test_a_copy_that_differs_is_refused(hub: FakeHub, tmp_path: Path, copy: Path) -> None:
    weights = locked(tmp_path, entry(PINNED[0], pin("model.safetensors", BIG[::-1])))
    assert "model.safetensors of acme/tiny came and has the sha256" in refusal(weights, FolderOrigin(copy))
    assert store(tmp_path) == ["tiny/config.json"]
    assert "has no other.json" in refusal(locked(tmp_path, entry(pin("other.json", b"{}"))), FolderOrigin(copy))


def test_a_damaged_blob_of_a_cache_is_refused_though_it_is_not_pinned(hub: FakeHub, tmp_path: Path) -> None:
    blobs = tmp_path / "copy/models--acme--tiny/blobs"
    inside = tmp_path / "copy/models--acme--tiny/snapshots" / COMMIT
    blobs.mkdir(parents=True)
    inside.mkdir(parents=True)
    (blobs / hashlib.sha256(b"right").hexdigest()).write_bytes(b"wrong")
    (inside / "model.safetensors").symlink_to(blobs / hashlib.sha256(b"right").hexdigest())
    weights = locked(tmp_path, entry(LockedFile(path="model.safetensors")))
    assert "is not what the hub describes" in refusal(weights, FolderOrigin(tmp_path / "copy"))
    assert store(tmp_path) == []


def test_a_link_that_leads_out_of_the_folder_is_no_file_of_it(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"password": 1}')
    folder = tmp_path / "mine"
    (folder / "text").mkdir(parents=True)
    save_file({"a": np.zeros(2, np.float32)}, folder / "model.safetensors")
    (folder / "text" / "model.safetensors").symlink_to("../model.safetensors")
    weights = locked(tmp_path, entry(*PINNED))
    lock_own(weights, "mine", folder, CONSOLE)
    assert "mine/text/model.safetensors" in store(tmp_path), "a link to a file beside it"
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelError, match=r"tokenizer\.json is a link that leads out of"):
        lock_own(weights, "other", folder, CONSOLE)
    weights = locked(tmp_path, entry(LockedFile(path="tokenizer.json")))
    assert "leads out of" in refusal(weights, FolderOrigin(folder))
    assert not [path for path in store(tmp_path) if "tokenizer" in path]


# --- the commands ------------------------------------------------------------------------------------


def test_the_commands_from_one_machine_to_another(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dnd(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            cli.main(["models", *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return f"{caught.value.code} {out}{err}"

    weights = locked(tmp_path, entry(pin("model.safetensors", BIG), LockedFile(path="config.json")))
    monkeypatch.setenv("DND_LOCK", str(weights.lock))
    assert "not pinned" in dnd("list")
    assert "1/2" in dnd("list", "--long")
    fetched = dnd("fetch", "tiny")
    assert "0 tiny: 3 files to fetch, 0.4 MB" in fetched
    assert f"2 files pinned now in {weights.lock}" in fetched
    assert "3 of 3 files fetched" in fetched
    assert "all 3 files were here" in dnd("fetch", "tiny")
    assert "3 files fetched" in dnd("lock", "mine", "acme/tiny@main", "--role", "scorer")
    assert dnd("lock", "mine", "acme/tiny").startswith("1 Error: acme/tiny is no folder")
    assert dnd("fetch").startswith("2 ")
    assert dnd("fetch", "tiny", "--link").startswith("2 ")
    packed = dnd("pack", str(tmp_path / "box.tar"))
    assert packed.startswith("0 mine: 0.4 MB\ntiny: 0.4 MB\n")
    assert f"1 Error: {tmp_path / 'box.tar'} exists" in dnd("pack", str(tmp_path / "box.tar"), "tiny")

    box = locked(tmp_path / "other", entry(pin("model.safetensors", BIG), LockedFile(path="config.json")))
    monkeypatch.setenv("DND_LOCK", str(box.lock))
    monkeypatch.setenv("DND_MODELS", str(tmp_path / "box"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "dnd models unpack ARCHIVE" in dnd("verify", "tiny")
    assert "dnd models unpack --add" in dnd("unpack", str(tmp_path / "box.tar"))
    unpacked = dnd("unpack", str(tmp_path / "box.tar"), "--add")
    assert f"pinned now in {box.lock}: mine, tiny" in unpacked
    assert unpacked.split()[-1] == packed.split()[-1], "the same sha256"
    assert dnd("verify") == f"0 tiny: ok, {tmp_path / 'box/tiny'}\nmine: ok, {tmp_path / 'box/mine'}\n"
