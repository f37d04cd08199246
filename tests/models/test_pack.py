"""Archives of models: the same bytes for the same models, and nothing but whole, known models out of them."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dnd.errors import ModelError
from dnd.models.archive import Entry
from dnd.models.lockfile import LockedFile, LockedModel, LockedPart, lock_text, read_lock, write_lock
from dnd.models.pack import Unpacked, pack, unpack
from dnd.models.weights import Weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONSOLE = Console(quiet=True)
FILES = {"a": {"config.json": b"{}", "model.safetensors": b"weights" * 300}, "b": {"u.json": b"[]", "vae/v.json": b"1"}}


def pin(path: str, data: bytes) -> LockedFile:
    return LockedFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def models() -> dict[str, LockedModel]:
    """`a`, and `b` of two parts."""
    fields = {"role": "captioner", "licence": "mit", "gated": False}
    vae = LockedPart(source=f"hub:o/v@{COMMIT}", under="vae", licence="mit", gated=False, files=(pin("v.json", b"1"),))
    a = LockedModel(name="a", source=f"hub:o/a@{COMMIT}", files=tuple(pin(*f) for f in FILES["a"].items()), **fields)
    b = LockedModel(name="b", source=f"hub:o/b@{COMMIT}", files=(pin("u.json", b"[]"),), part=(vae,), **fields)
    return {"a": a, "b": b}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))


class Place:
    """A machine: a lock file and a store."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, LockedModel]) -> None:
        self.store, self.lock, self._patch = folder / "store", folder / "models.lock", monkeypatch
        folder.mkdir(exist_ok=True)
        write_lock(self.lock, known)

    @property
    def weights(self) -> Weights:
        self._patch.setenv("DND_MODELS", str(self.store))
        return Weights.read(self.lock)

    def fill(self, files: dict[str, dict[str, bytes]] = FILES) -> None:
        for name, inside in files.items():
            for path, data in inside.items():
                (self.store / name / path).parent.mkdir(parents=True, exist_ok=True)
                (self.store / name / path).write_bytes(data)

    def content(self) -> dict[str, bytes]:
        """Everything in the store and the lock file, but for the files that hold locks."""
        found = [path for path in self.store.rglob("*") if path.is_file() and ".locks" not in path.parts]
        return {str(path.relative_to(self.store.parent)): path.read_bytes() for path in [*found, self.lock]}

    def unpack(self, archive: Path, **options: object) -> Unpacked:
        return unpack(self.weights, archive, CONSOLE, **options)  # type: ignore[arg-type]


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path / "connected", monkeypatch, models())
    place.fill()
    return place


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path / "box", monkeypatch, models())


@pytest.fixture
def archive(connected: Place, tmp_path: Path) -> Path:
    pack(connected.weights, ["a", "b"], tmp_path / "box.tar", CONSOLE)
    return tmp_path / "box.tar"


def refusal(place: Place, archive: Path, **options: object) -> str:
    """What unpacking says; nothing may have changed."""
    before = place.content()
    with pytest.raises(ModelError) as caught:
        place.unpack(archive, **options)
    assert place.content() == before
    assert not (place.store / ".unpacking").exists()
    return f"{caught.value} {caught.value.hint}"


def test_what_was_packed_is_unpacked(box: Place, archive: Path) -> None:
    done = box.unpack(archive)
    assert (done.new, done.same, done.recorded) == (("a", "b"), (), ())
    assert (box.weights.resolve("a"), box.weights.resolve("b")) == (box.store / "a", box.store / "b")
    assert (box.store / "b/vae/v.json").read_bytes() == b"1"
    again = box.unpack(archive)
    assert (again.new, again.same) == ((), ("a", "b"))


def test_the_same_models_give_the_same_bytes(connected: Place, box: Place, archive: Path, tmp_path: Path) -> None:
    os.utime(connected.store / "a/config.json", ns=(1, 1))
    packed = pack(connected.weights, ["b", "a", "a"], tmp_path / "again.tar", CONSOLE)
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()
    assert packed.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert box.unpack(archive).sha256 == packed.sha256


def test_other_programs_read_the_archive(connected: Place, tmp_path: Path) -> None:
    """A plain tar, also where a path or a size is longer than its oldest form has room for."""
    (wheels := tmp_path / "wheelhouse").mkdir()
    name = f"{'aio' * 25}-3.13.2-cp312-cp312-x.whl"
    assert len(f"wheels/{name}") > 100
    (wheels / name).write_bytes(b"wheel")
    pack(connected.weights, ["a", "b"], tmp_path / "box.tar", CONSOLE, runfile=b"seed = 1\n", wheels=wheels)
    with tarfile.open(tmp_path / "box.tar", "r:") as tar:
        assert tar.getnames() == [
            "models.lock",
            "models/a/config.json",
            "models/a/model.safetensors",
            "models/b/u.json",
            "models/b/vae/v.json",
            "run.toml",
            f"wheels/{name}",
        ]
        data = tar.extractfile("models/a/model.safetensors")
        assert data
        assert data.read() == FILES["a"]["model.safetensors"]
    for entry in (Entry(f"models/{'x' * 90}/{'y' * 300}.json", 7), Entry("models/a/m.safetensors", 10 << 30)):
        with tarfile.open(fileobj=io.BytesIO(entry.header() + bytes(1024)), mode="r:") as tar:
            member = tar.firstmember
        assert member
        assert (member.name, member.size, member.type) == (entry.path, entry.size, tarfile.REGTYPE)


def test_long_paths_come_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{'deep/' * 30}{'x' * 120}.json"
    known = {"a": models()["a"].model_copy(update={"own": (pin(path, b"{}"),)})}
    here = Place(tmp_path / "connected", monkeypatch, known)
    here.fill({"a": {path: b"{}"}})
    pack(here.weights, ["a"], tmp_path / "box.tar", CONSOLE)
    there = Place(tmp_path / "box", monkeypatch, known)
    assert there.unpack(tmp_path / "box.tar").new == ("a",)
    assert (there.store / "a" / path).read_bytes() == b"{}"


def test_packing_overwrites_nothing_and_leaves_nothing_half_done(
    connected: Place, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"box\.tar exists"):
        pack(connected.weights, ["a"], archive, CONSOLE)
    weights = connected.weights
    weights.resolve("a")
    monkeypatch.setattr("dnd.models.weights.Weights.check", lambda *_: None)
    before = sorted(tmp_path.iterdir())
    for spoil in (b"WEIGHTS" * 300, b"short"):
        (connected.store / "a/model.safetensors").write_bytes(spoil)
        with pytest.raises(ModelError, match=r"models/a/model\.safetensors changed while it was packed"):
            pack(weights, ["a"], tmp_path / "new.tar", CONSOLE)
        assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_model_is_not_packed(connected: Place, tmp_path: Path) -> None:
    (connected.store / "a/config.json").write_bytes(b"[]")
    with pytest.raises(ModelError, match=r"config\.json has the sha256"):
        pack(connected.weights, ["a"], tmp_path / "box.tar", CONSOLE)
    with pytest.raises(ModelError, match="nothing to pack"):
        pack(connected.weights, [], tmp_path / "box.tar", CONSOLE)
    with pytest.raises(ModelError, match="microworld-clip come with their package"):
        pack(Weights.default(), ["microworld-clip"], tmp_path / "box.tar", CONSOLE)
    assert not (tmp_path / "box.tar").exists()


def test_a_full_disk_is_noticed_first(
    connected: Place, box: Place, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    assert "GB are needed" in refusal(box, archive)
    with pytest.raises(ModelError, match="GB are needed"):
        pack(connected.weights, ["a"], tmp_path / "new.tar", CONSOLE)


def test_a_run_file_and_wheels_come_out_where_they_are_wanted(connected: Place, box: Place, tmp_path: Path) -> None:
    wheels = tmp_path / "wheelhouse"
    wheels.mkdir()
    (wheels / "x-1-py3-none-any.whl").write_bytes(b"wheel")
    pack(connected.weights, ["a"], tmp_path / "w.tar", CONSOLE, runfile=b"seed = 1\n", wheels=wheels)
    done = box.unpack(tmp_path / "w.tar")
    assert (done.written, done.left) == ((), 2)
    into = tmp_path / "out"
    done = box.unpack(tmp_path / "w.tar", into=into)
    assert done.written == (into / "run.toml", into / "wheels/x-1-py3-none-any.whl")
    assert [path.read_bytes() for path in done.written] == [b"seed = 1\n", b"wheel"]
    assert box.unpack(tmp_path / "w.tar", into=into).written == done.written
    (into / "run.toml").write_bytes(b"mine")
    assert "run.toml exists and is another file" in refusal(box, tmp_path / "w.tar", into=into)
    assert (into / "run.toml").read_bytes() == b"mine"
    (wheels / "x.tar.gz").touch()
    with pytest.raises(ModelError, match=r"what is no wheel: x\.tar\.gz"):
        pack(connected.weights, ["a"], tmp_path / "w2.tar", CONSOLE, wheels=wheels)


# --- what the archive says against what the lock file knows ------------------------------------------


def test_an_unknown_model_needs_add(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path / "other", monkeypatch, {"a": models()["a"]})
    assert "does not know these models" in refusal(place, archive)
    done = place.unpack(archive, add=True)
    assert done.recorded == ("b",)
    assert read_lock(place.lock) == models()
    place.weights.check(["a", "b"])


def test_what_the_lock_file_does_not_know_yet_comes_from_the_archive(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fetch completed the pins where there was a network; the box has the lock file as it was."""
    known = models()
    known["a"] = known["a"].model_copy(update={"own": (LockedFile(path="model.safetensors"),)})
    place = Place(tmp_path / "other", monkeypatch, known)
    assert place.unpack(archive).recorded == ("a",)
    assert place.weights.find("a") == models()["a"]
    place.weights.check(["a", "b"])


@pytest.mark.parametrize(
    "change",
    [
        {"own": (pin("config.json", b"[]"), models()["a"].own[1])},
        {"own": models()["a"].own[:1]},
        {"own": (LockedFile(path="config.json"),)},
        {"source": f"hub:o/a@{'f' * 40}"},
        {"source": f"hub:evil/a@{COMMIT}"},
    ],
)
def test_another_model_of_a_known_name_is_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    known = models()
    known["a"] = known["a"].model_copy(update=change)
    place = Place(tmp_path / "other", monkeypatch, known)
    assert "has another 'a' than" in refusal(place, archive, add=True)


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ({"a": {"config.json": b"[]", "model.safetensors": FILES["a"]["model.safetensors"]}}, "has the sha256"),
        ({"a": {"config.json": b"{}"}}, "model.safetensors is missing"),
        ({"a": {**FILES["a"], "extra.json": b""}}, "does not list: extra.json"),
    ],
)
def test_another_model_in_the_store_is_left_alone(
    box: Place, archive: Path, spoilt: dict[str, dict[str, bytes]], words: str
) -> None:
    box.fill(spoilt)
    text = refusal(box, archive)
    assert words in text
    assert "then unpack again" in text


def test_an_interrupt_loses_nothing(box: Place, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box.fill({"a": FILES["a"]})
    before = box.content()

    def stop(number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dnd.models.pack.os.fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            box.unpack(archive)
    assert box.content() == before
    (box.store / ".unpacking/models/b").mkdir(parents=True)  # as a kill leaves it
    (box.store / ".unpacking/models/b/u.json").write_bytes(b"half")
    assert box.unpack(archive).new == ("b",)
    box.weights.check(["a", "b"])


# --- hostile archives --------------------------------------------------------------------------------

Member = tuple[tarfile.TarInfo, bytes]


def members(archive: Path) -> list[Member]:
    with tarfile.open(archive) as tar:
        return [(info, data.read() if (data := tar.extractfile(info)) else b"") for info in tar]


def member(name: str, data: bytes = b"{}", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def rebuilt(path: Path, parts: list[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for info, data in parts:
            info.size = len(data) if info.isreg() else info.size
            tar.addfile(info, io.BytesIO(data))
    return path


def with_lock(parts: list[Member], text: str) -> list[Member]:
    """The same with another models.lock."""
    return [member("models.lock", text.encode()), *parts[1:]]


PLAIN = tarfile.USTAR_FORMAT


def test_the_tests_own_archives_are_sound(box: Place, archive: Path, tmp_path: Path) -> None:
    """What the tests below rebuild is refused for what they change, and for nothing else."""
    assert rebuilt(tmp_path / "same.tar", members(archive), PLAIN).read_bytes() == archive.read_bytes()
    extra = [member("run.toml", b"seed = 1\n"), member("wheels/a.whl", b"a"), member("wheels/b.whl", b"b")]
    assert box.unpack(rebuilt(tmp_path / "more.tar", [*members(archive), *extra], PLAIN)).left == 3


EVIL = [
    member("models/a/other.json"),
    member("../../evil.json"),
    member("../evil.whl"),
    member("/evil.json"),
    member("models/a/config.json"),
    member("models/a/../../evil.json"),
    member("models/c", b"", tarfile.SYMTYPE, "/etc"),
    member("models/c", b"", tarfile.DIRTYPE),
    member("models.lock"),
    member("run.py"),
    member("wheels/setup.sh"),
    member("wheels/deep/x.whl"),
    member("wheels/../evil.whl"),
    member("wheels/..whl"),
    member("wheels/\\evil.whl"),
    member("wheels/x.whl", b"", tarfile.SYMTYPE, "/etc/passwd"),
    member("run.toml", b"", tarfile.LNKTYPE, "/etc/passwd"),
    member("wheels/\x1b[2J.whl"),
]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("extra", EVIL, ids=lambda extra: repr(extra[0].name))
def test_a_member_that_is_not_listed_is_refused(
    box: Place, archive: Path, tmp_path: Path, extra: Member, form: int
) -> None:
    text = refusal(box, rebuilt(tmp_path / "bad.tar", [*members(archive), extra], form))
    assert "is refused: it has" in text or (form == tarfile.GNU_FORMAT and "is not an archive" in text)
    between = members(archive)
    between.insert(2, extra)
    text = refusal(box, rebuilt(tmp_path / "bad2.tar", between, PLAIN), into=tmp_path / "out")
    assert "its models.lock lists models/a/model.safetensors, a file of 2100 bytes" in text
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


@pytest.mark.parametrize(
    "extra",
    [
        [member("run.toml"), member("run.toml")],
        [member("wheels/a.whl"), member("run.toml")],
        [member("wheels/a.whl"), member("wheels/a.whl")],
        [member("wheels/b.whl"), member("wheels/a.whl")],
    ],
)
def test_run_file_and_wheels_come_once_and_in_order(
    box: Place, archive: Path, tmp_path: Path, extra: list[Member]
) -> None:
    text = refusal(box, rebuilt(tmp_path / "bad.tar", [*members(archive), *extra], PLAIN), into=tmp_path / "out")
    assert f"it has '{extra[1][0].name}' where after the models" in text


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_a_listed_file_that_is_a_link_or_a_device_is_refused(
    box: Place, archive: Path, tmp_path: Path, kind: bytes
) -> None:
    parts = members(archive)
    name = parts[1][0].name
    parts[1] = member(name, b"", kind, "/etc/passwd")
    assert f"lists {name}, a file of 2 bytes" in refusal(box, rebuilt(tmp_path / "bad.tar", parts, PLAIN))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"config.json"', '"../evil.json"', "not a path inside"),
        ('"config.json"', '"/evil.json"', "not a path inside"),
        ('"config.json"', '"x/../../evil.json"', "not a path inside"),
        ('"config.json"', '"./x.json"', "not a path inside"),
        ('"config.json"', '"a\\\\x.json"', "not a path inside"),
        ('"config.json"', '"x\\u0000.json"', "not a path inside"),
        ('"config.json"', '".git/x.json"', "not a path inside"),
        ('"config.json"', '"CON:.json"', "not a path inside"),
        ('"config.json"', '"x.py"', "others could run code"),
        ('"config.json"', '"pytorch_model.bin"', "others could run code"),
        ('"config.json"', '"MODEL.safetensors"', "are one file"),
        ('"config.json"', '"model.safetensors/x.json"', "is a file and the folder of"),
        ('"config.json"', '"unlisted.json"', "lists models/a/model.safetensors"),
        ('"config.json"', '"\u00e9/x.json"', "lists models/a/model.safetensors"),
        ('name = "b"', 'name = "A"', "two models of one name"),
        ('name = "b"', 'name = "../b"', "the lock file in"),
        ('name = "b"', 'name = "c"', "lists models/c/u.json"),
        ("version = 1", "version = 2", "is of version 2; this dnd reads up to 1"),
        ("version = 1", "version = 0", "version 0 does not exist"),
        ("version = 1", "", "the lock file in"),
        ("size = 2,", "size = 3,", "a file of 3 bytes"),
        ("size = 2,", "size = -1,", "the lock file in"),
        ("size = 2,", f"size = {10**30},", "the lock file in"),
        ("size = 2,", "", "does not pin all files of a"),
        ("sha256 = ", f'sha256 = "{"0" * 64}" #', "cannot read the lock file"),
        (f"hub:o/a@{COMMIT}", "package:os/path", "does not pin all files of a"),
    ],
)
def test_a_lock_that_is_not_right_is_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, words: str
) -> None:
    """Also where no model is known yet, and the user trusts the packer."""
    other = Place(tmp_path / "other", monkeypatch, {})
    text = lock_text(models().values())
    assert old in text
    parts = with_lock(members(archive), text.replace(old, new, 1))
    assert words in refusal(other, rebuilt(tmp_path / "bad.tar", parts, PLAIN), add=True)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(("at", "data"), [(1, b"{]"), (2, b"WEIGHTS" * 300), (1, b"{}" * 50), (1, b"")])
def test_content_that_is_not_what_the_lock_says_is_refused(
    box: Place, archive: Path, tmp_path: Path, at: int, data: bytes
) -> None:
    parts = members(archive)
    parts[at] = (parts[at][0], data)
    text = refusal(box, rebuilt(tmp_path / "bad.tar", parts, PLAIN))
    assert "has the sha256" in text or "its models.lock lists" in text


def test_an_archive_of_an_earlier_version_is_packed_anew(box: Place, archive: Path, tmp_path: Path) -> None:
    old = rebuilt(tmp_path / "old.tar", [member("manifest.json"), *members(archive)])
    assert "pack those of earlier versions anew" in refusal(box, old)


def test_what_follows_the_end_is_refused(box: Place, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(archive.read_bytes() + b"\0")
    assert "something follows its end" in refusal(box, tmp_path / "bad.tar")


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x1f\x8b\x08 gzip", b"PK\x03\x04 zip", b"\0" * 10240, b"x" * 600], ids=repr
)
def test_what_is_no_archive_is_refused(box: Place, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.tar").write_bytes(data)
    text = refusal(box, tmp_path / "bad.tar")
    assert "is not an archive of this version's `dnd models pack`" in text or "is cut short" in text


def test_a_compressed_archive_is_not_expanded(box: Place, archive: Path, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "bad.tar").write_bytes(gzip.compress(archive.read_bytes()))
    assert "unpack compressed ones first" in refusal(box, tmp_path / "bad.tar")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.REGTYPE])
@pytest.mark.parametrize("name", ["././@LongLink", "models.lock"])
def test_a_header_that_claims_gigabytes_is_not_read_into_memory(
    box: Place, tmp_path: Path, kind: bytes, name: str
) -> None:
    """A sparse file: the header says that what follows is 40 GB long, and so is the file."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, 40 << 30
    with (tmp_path / "bomb.tar").open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(info.size + 1024)
    assert "is not an archive" in refusal(box, tmp_path / "bomb.tar")


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.6, 0.7])
def test_a_truncated_archive_is_refused(box: Place, archive: Path, tmp_path: Path, part: float) -> None:
    data = archive.read_bytes().rstrip(b"\0")
    (tmp_path / "bad.tar").write_bytes(data[: int(len(data) * part)])
    text = refusal(box, tmp_path / "bad.tar")
    assert "cut short" in text or "damaged" in text or "not an archive" in text


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_done_to_an_archive_it_is_refused_or_the_same(
    box: Place, archive: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Bytes changed, taken out, put in or moved: the store has every byte of before afterwards, or nothing new."""
    whole = archive.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1), "at")
    kind = data.draw(st.sampled_from(["set", "cut", "put", "copy", "end"]), "kind")
    new = data.draw(st.binary(min_size=1, max_size=8), "new")
    length = data.draw(st.sampled_from([1, 100, 512, 1024]), "length")
    other = data.draw(st.integers(0, len(whole) // 512), "other") * 512
    spoilt = {
        "set": whole[:at] + new + whole[at + len(new) :],
        "cut": whole[:at] + whole[at + length :],
        "put": whole[:at] + new + whole[at:],
        "copy": whole[: at // 512 * 512] + whole[other : other + length] + whole[at // 512 * 512 :],
        "end": whole[:at],
    }[kind]
    path = tmp_path / "spoilt.tar"
    path.write_bytes(spoilt)
    before = box.content()
    try:
        box.unpack(path, add=True)
    except ModelError:
        assert box.content() == before
    else:
        expected = {f"store/{name}/{path}": content for name, files in FILES.items() for path, content in files.items()}
        assert box.content() == {**before, **expected}
        for name in FILES:
            (box.store / name).rename(tmp_path / f"seen-{name}-{os.urandom(4).hex()}")
