"""Files that somebody else put there: links, pipes, devices and bombs in a run folder, a store or an archive."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import toys
from corpus import png_of
from PIL import Image
from rich.console import Console

from dnd.errors import DamagedError, ModelError, StoreError, UsageError
from dnd.files import open_regular, read_text
from dnd.models.archive import LOCK, RUNFILE, Entry, write_archive
from dnd.models.lockfile import lock_text
from dnd.models.pack import unpack
from dnd.models.weights import Weights
from dnd.pipeline.execute import execute
from dnd.pipeline.exemplars.record import Record
from dnd.probing.sets import FolderSet
from dnd.results.export.dataset import write_dataset
from dnd.results.export.parquet import write_parquet
from dnd.results.report.build import build_report
from dnd.results.report.single import build_single
from dnd.results.run import RunFolder
from dnd.store.files import write_atomic
from dnd.store.images import MAX_PIXELS, Store
from dnd.store.keys import digest_of
from dnd.store.locks import LOCK as RUN_LOCK
from dnd.store.locks import only_here
from dnd.store.table import Table

SCHEMA = pa.schema([("key", pa.string()), ("text", pa.string())])
PRECIOUS = "do not touch\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's, which nothing may change."""
    file = tmp_path / "victim"
    file.write_text(PRECIOUS)
    return file


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of photos and a finished run."""
    folder = tmp_path_factory.mktemp("ran")
    photos = toys.make_photos(folder / "photos", 12)
    execute(toys.toy_run(photos), folder / "run", registry=toys.registry(), live=(toys.Net(), toys.preprocess))
    return folder


def again(ran: Path, out: Path) -> None:
    execute(toys.toy_run(ran / "photos"), out, registry=toys.registry(), live=(toys.Net(), toys.preprocess))


# --- writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_refused_and_spares_what_it_leads_to(tmp_path: Path, victim: Path, how) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    how(victim, folder / RUN_LOCK)
    with pytest.raises(StoreError, match="link") as caught, only_here(folder):
        pass
    assert str(folder / RUN_LOCK) in caught.value.hint
    assert victim.read_text() == PRECIOUS
    (folder / RUN_LOCK).unlink()
    with only_here(folder):
        assert json.loads((folder / RUN_LOCK).read_text())["pid"] == os.getpid()
    assert victim.read_text() == PRECIOUS


def test_a_dangling_lock_makes_nothing_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / RUN_LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="symbolic link"), only_here(folder):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    os.mkfifo(folder / RUN_LOCK)
    with pytest.raises(StoreError, match="pipe"), only_here(folder):
        pass


def test_links_in_a_handed_over_run_folder_are_replaced_not_followed(ran: Path, victim: Path) -> None:
    run = ran / "handed"
    again(ran, run)
    names = ("run.toml", "run.json", "labels.csv", "labels.jsonl", "status.json")
    for name in names:
        victim.with_name(f"victim-{name}").write_bytes((run / name).read_bytes() if (run / name).exists() else b"{}")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim.with_name(f"victim-{name}"))
    before = {name: victim.with_name(f"victim-{name}").read_bytes() for name in names}
    again(ran, run)
    assert {name: victim.with_name(f"victim-{name}").read_bytes() for name in names} == before
    assert not any((run / name).is_symlink() for name in names[:4])
    assert len(RunFolder(run).labels) == 4


def test_a_device_in_the_place_of_a_file_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "labels.csv").symlink_to(tmp_path / "pipe")
    with pytest.raises(StoreError, match="a pipe or a device"):
        write_atomic(tmp_path / "labels.csv", b"x")
    assert (tmp_path / "labels.csv").is_symlink()
    assert list(tmp_path.glob(".*.tmp")) == []


def test_folders_of_a_store_that_are_links_are_not_written_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    store = Store(tmp_path / "store")
    store.folder.mkdir()
    (store.folder / "images").symlink_to(elsewhere)
    (store.folder / f"x-{digest_of('k')[:24]}").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="symbolic link"):
        store.put_image(toys.flat("red", 1))
    with pytest.raises(StoreError, match="symbolic link"):
        store.table("x", digest_of("k"), SCHEMA).append([{"key": "a", "text": "b"}])
    assert list(elsewhere.iterdir()) == []


def test_a_store_that_is_a_link_itself_is_the_users_choice(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = Store(tmp_path / "store")
    assert store.put_image(toys.flat("red", 1)).open().mode == "RGB"


def test_the_memory_of_digests_is_not_written_through_a_link(tmp_path: Path, victim: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 3)
    empty = tmp_path / "empty"
    empty.touch()
    (tmp_path / "digests.sqlite").symlink_to(empty)
    assert FolderSet(photos, tmp_path / "digests.sqlite").digest() == FolderSet(photos).digest()
    assert empty.read_bytes() == b""


class Box:
    """A machine that gets an archive: its model store and a lock file without models."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        for name in ("MODELS", "CACHE"):
            monkeypatch.setenv(f"DND_{name}", str(folder / name.lower()))
        (folder / "models.lock").write_text(lock_text([]))
        (folder / "models").mkdir()

    def archive(self) -> Path:
        data = {LOCK: lock_text([]).encode(), RUNFILE: b"seed = 1\n", "wheels/a-1-py3-none-any.whl": b"wheel"}
        with (self.folder / "box.tar").open("wb") as file:
            write_archive(file, [(Entry(name, len(text)), iter([text])) for name, text in data.items()])
        return self.folder / "box.tar"

    def unpack(self) -> None:
        unpack(
            Weights.read(self.folder / "models.lock"), self.archive(), Console(quiet=True), into=self.folder / "into"
        )


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    return Box(tmp_path, monkeypatch)


def test_unpacking_without_links_writes_both(box: Box) -> None:
    box.unpack()
    assert (box.folder / "into" / "run.toml").read_bytes() == b"seed = 1\n"
    assert (box.folder / "into" / "wheels" / "a-1-py3-none-any.whl").read_bytes() == b"wheel"
    assert sorted(path.name for path in (box.folder / "into").iterdir()) == ["run.toml", "wheels"]


@pytest.mark.parametrize("name", [".run.toml.part", "run.toml", "wheels"])
def test_unpacking_goes_through_no_link(box: Box, victim: Path, name: str) -> None:
    into, elsewhere = box.folder / "into", box.folder / "elsewhere"
    into.mkdir()
    elsewhere.mkdir()
    (into / name).symlink_to(elsewhere if name == "wheels" else victim)
    if name == ".run.toml.part":
        box.unpack()
    else:
        with pytest.raises(ModelError):
            box.unpack()
    assert victim.read_text() == PRECIOUS
    assert list(elsewhere.iterdir()) == []


def test_the_place_where_archives_are_checked_is_no_link(box: Box) -> None:
    elsewhere = box.folder / "elsewhere"
    elsewhere.mkdir()
    (box.folder / "models" / ".unpacking").symlink_to(elsewhere)
    with pytest.raises(ModelError, match=r"\.unpacking"):
        box.unpack()
    assert list(elsewhere.iterdir()) == []


# --- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["pipe", "device", "link to a device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, what: str) -> None:
    file = tmp_path / "x"
    if what == "pipe":
        os.mkfifo(file)
    else:
        file = Path("/dev/zero") if what == "device" else file
        if what != "device":
            file.symlink_to("/dev/zero")
    for read in (open_regular, read_text):
        with pytest.raises(OSError, match="no regular file"):
            read(file)


@pytest.mark.parametrize("write", ["csv", "parquet", "hf", "single page", "report"])
def test_nothing_takes_the_place_of_a_pipe(ran: Path, tmp_path: Path, write: str) -> None:
    """As root, an export to /dev/null would replace it; and a page was waited for."""
    out = tmp_path / "out"
    os.mkfifo(out)
    run = RunFolder(ran / "run")
    deeds: dict[str, Callable[[], object]] = {
        "csv": lambda: write_atomic(out, b"x"),
        "parquet": lambda: write_parquet(run, out),
        "hf": lambda: write_dataset(run, out),
        "single page": lambda: build_single([run], out, progress=lambda n: None),
        "report": lambda: build_report([run], out, progress=lambda n: None),
    }
    with pytest.raises((StoreError, UsageError), match=r"is in its place|exists"):
        deeds[write]()
    assert stat.S_ISFIFO(out.stat().st_mode)


def test_a_record_of_activations_waits_for_no_pipe_and_must_be_whole(tmp_path: Path) -> None:
    record = Record(tmp_path, {"fc": 2}, 3)
    os.mkfifo(record._file("fc", "partial"))
    with pytest.raises(StoreError, match="cannot write the activations of fc"):
        record.add([0], {"fc": torch.ones(1, 2)})
    record._file("fc").write_bytes(b"\0" * 35)
    assert not record.has("fc"), "3 images, 2 units and a mark are 36 bytes"
    record._file("fc").write_bytes(b"\0" * 36)
    assert record.has("fc")


def test_a_pipe_as_a_parquet_part_is_set_aside(tmp_path: Path) -> None:
    table = Table(tmp_path / "x-1", SCHEMA)
    table.append([{"key": "a", "text": "b"}])
    os.mkfifo(table.folder / f"part-{'0' * 64}.parquet")
    (table.folder / f"part-{'1' * 64}.parquet").symlink_to("/dev/zero")
    assert [row["text"] for row in table.rows()] == ["b"]
    assert len(list(table.folder.glob("damaged-*"))) == 2


@pytest.mark.parametrize("name", ["run.toml", "run.json", "labels.csv", "labels.jsonl"])
def test_pipes_in_a_run_folder_are_refused(ran: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for file in (ran / "run").iterdir():
        if file.is_file() and file.name != name:
            (run / file.name).write_bytes(file.read_bytes())
    os.mkfifo(run / name)

    def read() -> None:
        opened = RunFolder(run)
        _ = opened.settings, opened.facts

    with pytest.raises((StoreError, UsageError)):
        read()
    if name == "run.toml":
        with pytest.raises(StoreError, match=r"run\.toml"):
            again(ran, run)


def stored(store: Store, data: bytes) -> str:
    """A file in the place of an image; its name."""
    digest = "ab" + "0" * 62
    store.image_path(digest).parent.mkdir(parents=True)
    store.image_path(digest).write_bytes(data)
    return digest


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{ } loop\n%%EOF\n"


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A decoder that starts another program fails the test, whatever becomes of its error."""
    started: list[object] = []

    def start(*args: object, **options: object) -> None:
        started.append(args)
        raise OSError("a program was started")

    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, start)
    yield
    assert started == []


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".eps", ".webp", ""])
def test_eps_starts_no_ghostscript_under_any_name(tmp_path: Path, suffix: str) -> None:
    photos = toys.make_photos(tmp_path / "photos", 2)
    (photos / f"bad{suffix}").write_bytes(EPS)
    probing = FolderSet(photos)
    if suffix in ("", ".eps"):
        assert len(probing) == 2
        return
    assert len(probing) == 3
    with pytest.raises((OSError, ValueError)):
        probing.open([probing.image_name(index) for index in range(3)].index(f"bad{suffix}"))


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("kind", ["EPS", "GIF", "JPEG", "TIFF"])
def test_the_store_reads_png_alone(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO(EPS)
    if kind != "EPS":
        toys.flat("red", 1).save(buffer, kind)
    store = Store(tmp_path / "store")
    with pytest.raises(DamagedError):
        store.picture(stored(store, buffer.getvalue())).open()


def test_a_bomb_in_the_store_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")
    bomb = png_of(9000, 9000)
    assert len(bomb) < 100_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(DamagedError):
        store.picture(stored(store, bomb)).open()


@pytest.mark.parametrize("size", [(3000, 3000), (5_000_000, 1), (1, 5_000_000)])
def test_large_images_are_kept_smaller(tmp_path: Path, size: tuple[int, int]) -> None:
    store = Store(tmp_path / "store")
    kept = store.put_image(Image.new("RGB", size, "red")).open()
    assert MAX_PIXELS * 0.9 < kept.width * kept.height <= MAX_PIXELS
    assert kept.getpixel((0, 0)) == (255, 0, 0)


# --- what somebody else's files do to a report, a concept list and a pass ---------------------------


def test_a_report_is_not_written_through_a_link_and_clears_what_a_killed_one_left(ran: Path, tmp_path: Path) -> None:
    run, elsewhere = RunFolder(ran / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "report"
    out.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="symbolic link"):
        build_report([run], out, progress=lambda n: None)
    assert list(elsewhere.iterdir()) == []
    out.unlink()
    left = [tmp_path / f".report.{'0' * 32}.{kind}" for kind in ("new", "old")]
    for folder in (*left, tmp_path / ".report.mine"):
        folder.mkdir()
        (folder / "x").touch()
    assert build_report([run], out, progress=lambda n: None).page.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".report.mine", "elsewhere", "report"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("plain.txt", b"\xef\xbb\xbfred\n# a comment\n\nblue, deep\n"),
        ("table.csv", b'\xef\xbb\xbfid,Concept\n1,red\n2,"blue, deep"\n'),
        ("one.csv", b'red\n"blue, deep"\n'),
        ("table.tsv", b"concept\tn\nred\t1\nblue, deep\t2\n"),
    ],
)
def test_concept_lists_as_people_have_them(tmp_path: Path, name: str, data: bytes) -> None:
    from dnd_methods.concepts import concept_set

    (tmp_path / name).write_bytes(data)
    assert concept_set(str(tmp_path / name)) == ["red", "blue, deep"]


def test_a_table_without_a_column_of_concepts_is_refused(tmp_path: Path) -> None:
    from dnd_methods.concepts import concept_set

    (tmp_path / "x.csv").write_text("id,word\n1,red\n")
    with pytest.raises(UsageError, match="none is called concept"):
        concept_set(str(tmp_path / "x.csv"))


def test_images_on_which_the_preprocess_raises_are_skipped_and_listed(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "photos", 12)
    Image.new("RGB", (3, 90), "red").save(photos / "narrow.png")

    def preprocess(image: Image.Image) -> object:
        if image.width < 5:
            raise ZeroDivisionError("so narrow")
        return toys.preprocess(image)

    out = tmp_path / "run"
    execute(toys.toy_run(photos), out, registry=toys.registry(), live=(toys.Net(), preprocess))
    unreadable = json.loads((out / "run.json").read_text())["probing"]["unreadable"]
    assert unreadable == {"narrow.png": "the target's preprocess: ZeroDivisionError: so narrow"}


def test_files_without_an_extension_and_mpo_are_images(tmp_path: Path) -> None:
    toys.flat("red", 1).save(tmp_path / "a", "PNG")
    toys.flat("red", 1).save(tmp_path / "b.mpo", "JPEG")
    (tmp_path / "LICENSE").write_text("no image")
    probing = FolderSet(tmp_path)
    assert [probing.image_name(index) for index in range(len(probing))] == ["a", "b.mpo"]
    assert [probing.open(index).mode for index in range(2)] == ["RGB", "RGB"]
