"""Probing images inside other files: tar shards, and the Parquet and Arrow files of `datasets`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dnd.api import ImageFolder
from dnd.errors import UsageError
from dnd.probing.sets import FolderSet, UnionSet

COLOURS = ("red", "lime", "blue", "yellow", "white")


def png(colour: str, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def colours(images: ImageFolder) -> list[tuple[int, ...]]:
    return [images.open(index).getpixel((0, 0)) for index in range(len(images))]  # type: ignore[misc]


WANTED = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in COLOURS]


def shard(file: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_tar_shards_are_read_where_they_lie(tmp_path: Path) -> None:
    files: list[dict[str, bytes | tarfile.TarInfo]] = [{}, {}]
    for number, colour in enumerate(COLOURS):
        own = files[number // 3]
        own[f"{number:04d}.png"] = png(colour)
        own[f"{number:04d}.cls"] = f"{number}\n".encode()
        own[f"{number:04d}.json"] = b"{}"
    for number, members in enumerate(files):
        shard(tmp_path / f"part-{number}.tar", members)
    images = ImageFolder(tmp_path)
    assert images.image_name(3) == "part-1.tar/0003.png"
    assert colours(images) == WANTED
    assert [images.label(index) for index in range(5)] == ["0", "1", "2", "3", "4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0.tar", "part-1.tar"], "nothing is unpacked"


def test_members_that_are_no_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png("red"))
    link, hard, pipe = (tarfile.TarInfo(f"{name}.png") for name in ("link", "hard", "pipe"))
    link.type, link.linkname = tarfile.SYMTYPE, "../secret.png"
    hard.type, hard.linkname = tarfile.LNKTYPE, "secret.png"
    pipe.type = tarfile.FIFOTYPE
    folder = tmp_path / "shards"
    folder.mkdir()
    shard(
        folder / "a.tar",
        {"link.png": link, "hard.png": hard, "pipe.png": pipe, "../up/b.png": png("blue"), "d/c.png": png("lime")},
    )
    images = ImageFolder(folder)
    assert [images.image_name(index) for index in range(len(images))] == ["a.tar/../up/b.png", "a.tar/d/c.png"]
    assert [images.label(index) for index in range(2)] == ["..", "d"]
    assert [path.name for path in folder.iterdir()] == ["a.tar"]


def test_a_shard_that_was_cut_short_is_named(tmp_path: Path) -> None:
    noise = Image.effect_noise((64, 64), 90)
    file = io.BytesIO()
    noise.save(file, "PNG")
    shard(tmp_path / "a.tar", {"0.png": file.getvalue(), "1.png": file.getvalue()})
    assert len(ImageFolder(tmp_path)) == 2
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2000])
    with pytest.raises(UsageError, match=r"a\.tar cannot be read: unexpected end of data"):
        ImageFolder(tmp_path)


def test_folders_of_datasets_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["warm", "cold"]),
            "picture": datasets.Image(),
            "other": datasets.Value("int64"),
        }
    )
    rows = {
        "label": [0, 1, 1, 0, 1],
        "picture": [{"bytes": png(colour), "path": f"/etc/{colour}.png"} for colour in COLOURS],
        "other": [1, 2, 3, 4, 5],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(str(tmp_path / "arrow"), num_shards=2)
    (tmp_path / "arrow" / "cache-0123.arrow").write_bytes(b"of earlier work")
    (tmp_path / "parquet").mkdir()
    made.to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"), batch_size=2)
    datasets.DatasetDict({"test": made, "train": made}).save_to_disk(str(tmp_path / "both"))
    for name, first in (
        ("arrow", "data-00000-of-00002.arrow/000000"),
        ("parquet", "train-00000-of-00001.parquet/000000"),
    ):
        images = ImageFolder(tmp_path / name)
        assert colours(images) == WANTED
        assert [images.label(index) for index in range(5)] == ["warm", "cold", "cold", "warm", "cold"]
        assert images.image_name(0) == first
    assert len(ImageFolder(tmp_path / "both")) == 10
    assert len(ImageFolder(tmp_path / "both" / "train")) == 5


def write(folder: Path, table: Any) -> Path:
    folder.mkdir()
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    return folder


def test_a_plain_column_of_bytes_will_do(tmp_path: Path) -> None:
    table = pa.table({"jpg": [png(colour) for colour in COLOURS], "label": list("abcde"), "text": ["x"] * 5})
    images = ImageFolder(write(tmp_path / "own", table))
    assert colours(images)[::-1] == WANTED[::-1]
    assert images.label(4) == "e"


def test_a_path_beside_the_dataset_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png("red"))
    rows = [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": png("blue"), "path": None}]
    images = ImageFolder(write(tmp_path / "own", pa.table({"image": rows})))
    with pytest.raises(ValueError, match="does not have its bytes"):
        images.open(0)
    assert images.open(1).getpixel((0, 0)) == WANTED[2]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
        ("a.arrow", b"\xff\xff\xff\xff\x10\x00\x00\x00 nothing", "cannot be read"),
        ("a.tar", b"no tar at all" * 100, "cannot be read"),
        ("a.csv", b"label\n1\n", "its 1 files are of other kinds"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=why) as caught:
        ImageFolder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_table_without_images_is_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its 1 files are of other kinds"):
        ImageFolder(write(tmp_path / "own", pa.table({"text": ["a", "b"]})))


def test_row_groups_too_large_for_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnd.api.packed._GROUP", 100)
    folder = write(tmp_path / "own", pa.table({"image": [png(colour, 64) for colour in COLOURS]}))
    with pytest.raises(UsageError, match="row groups of"):
        ImageFolder(folder)
    monkeypatch.setattr("dnd.api.packed._GROUP", 1 << 31)
    monkeypatch.setattr("dnd.api.packed._LARGEST", 50)
    with pytest.raises(ValueError, match="bytes, more than 50"):
        ImageFolder(folder).open(0)


def test_one_image_in_all_rows_is_not_decoded_for_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet keeps it once, and a reader of the whole group would not."""
    same = png("red", 64)
    pq.write_table(pa.table({"image": [same] * 1000}), tmp_path / "a.parquet")
    monkeypatch.setattr("dnd.api.packed._GROUP", 500 * len(same))
    images = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="its row group has more than"):
        images.open(0)
    monkeypatch.setattr("dnd.api.packed._GROUP", 2000 * len(same))
    assert images.open(999).getpixel((0, 0)) == WANTED[0]


def test_rows_without_images_take_no_memory(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.nulls(100_000, pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="100,000 rows in fewer bytes"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("value", ["a/b.png", 5, {"bytes": "abc"}, {"bytes": [1, 2]}, {"bytes": 7}], ids=str)
def test_what_is_called_an_image_and_is_none_is_skipped(tmp_path: Path, value: Any) -> None:
    """As `datasets` has it: a feature Image over a column of paths, say."""
    features = json.dumps({"info": {"features": {"image": {"_type": "Image"}}}})
    table = pa.table({"image": [value]}).replace_schema_metadata({"huggingface": features})
    with pytest.raises(ValueError, match="does not have its bytes"):
        ImageFolder(write(tmp_path / "own", table)).open(0)


def test_columns_and_members_of_one_name(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([png(colour)]) for colour in COLOURS[:2]], ["image", "image"])
    with pytest.raises(UsageError, match="several columns called image"):
        ImageFolder(write(tmp_path / "own", twice))
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as tar:
        for colour in COLOURS:
            info = tarfile.TarInfo("../0.png")
            info.size = len(png(colour))
            tar.addfile(info, io.BytesIO(png(colour)))
    images = ImageFolder(tmp_path / "shards")
    assert colours(images) == WANTED
    assert [images.image_name(index) for index in range(2)] == ["a.tar/../0.png", "a.tar/../0.png#1"]


def test_loose_images_come_first(tmp_path: Path) -> None:
    """A dataset's images as files, with its tables beside them: they are not shown twice."""
    (tmp_path / "a.png").write_bytes(png("red"))
    shard(tmp_path / "b.tar", {"b.png": png("blue")})
    assert [ImageFolder(tmp_path).image_name(0), len(ImageFolder(tmp_path))] == ["a.png", 1]


def test_digest_and_halves_follow_the_content(tmp_path: Path) -> None:
    found = set()
    for number, colour in enumerate(("red", "blue")):
        folder = tmp_path / f"{number}" / "same"
        folder.mkdir(parents=True)
        shard(folder / "a.tar", {**{f"{n}.png": png("lime", 8 + n) for n in range(20)}, "x.png": png(colour)})
        whole, half = FolderSet(folder, tmp_path / "memory"), FolderSet(folder, tmp_path / "memory", half=True)
        assert whole.digest() == ImageFolder(folder).digest()
        assert 0 < len(half) < 21
        shown, _ = whole.halves()
        assert half.paths == [whole.paths[index] for index in shown]
        assert [half.open(i).size for i in range(len(half))] == [whole.open(i).size for i in shown]
        found |= {whole.digest(), half.digest()}
    assert len(found) == 4
    assert UnionSet([whole, half]).image_name(21).startswith("same-2/a.tar/")
