"""Folders of images as people have them."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import Blobs
from PIL import Image

from dnd.errors import UsageError
from dnd.probing.remember import RememberedSet
from dnd.probing.sets import FolderSet, UnionSet
from dnd.store import digests


def save(
    path: Path, colour: Any = (200, 10, 20), size: tuple[int, int] = (12, 8), mode: str = "RGB", **kw: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **kw)
    return path


def only(folder: Path) -> Image.Image:
    found = FolderSet(folder)
    assert len(found) == 1
    image = found.open(0)
    assert image.mode == "RGB"
    return image


def colour(image: Image.Image, x: int = 0, y: int = 0) -> Any:
    return image.getpixel((x, y))


def test_the_order_is_that_of_the_paths(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.jpg", "a/b/c.PNG", "a.webp", "B.gif", "é.png", "a b.bmp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    save(tmp_path / ".cache" / "x.png")
    found = FolderSet(tmp_path)
    names = [found.image_name(i) for i in range(len(found))]
    assert names == sorted(["b.png", "a/z.jpg", "a/b/c.PNG", "a.webp", "B.gif", "é.png", "a b.bmp"])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.convert(mode if mode != "PA" else "P").save(tmp_path / "x.png")
    found = only(tmp_path)
    assert (colour(found), colour(found, 3, 3)) == ((0, 0, 0), (255, 255, 255))


def test_a_transparent_grey_of_16_bits_becomes_white(tmp_path: Path) -> None:
    values = np.array([[1000, 60000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    found = only(tmp_path)
    assert (colour(found), colour(found, 1, 0)) == ((255,) * 3, (round(60000 / 257),) * 3)


def test_palette_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "x.png", transparency=1)
    found = only(tmp_path)
    assert (colour(found), colour(found, 3, 3)) == ((0, 0, 0), (255, 255, 255))


def test_cmyk(tmp_path: Path) -> None:
    save(tmp_path / "x.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)
    red, green, blue = colour(only(tmp_path), 4, 4)
    assert red > 200
    assert green < 60
    assert blue < 60


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    found = only(tmp_path)
    assert [colour(found, x, y)[0] for y in (0, 1) for x in (0, 1)] == [0, 100, 200, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 100.0, 200.0], [0, 100, 200]), ([-1.0, 0.0, 1.0], [0, 128, 255])],
)
def test_floats(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "x.tiff")
    found = only(tmp_path)
    assert [colour(found, x)[0] for x in range(3)] == expected


def test_exif_rotation(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.paste((255, 255, 255), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "x.png", exif=exif)
    found = only(tmp_path)
    assert found.size == (4, 8)
    assert (colour(found), colour(found, 0, 7)) == ((255, 255, 255), (0, 0, 0))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert colour(only(tmp_path)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr", "HSV"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode in ("YCbCr",) else "png"
    Image.new("RGB", (4, 4), "white").convert(mode if mode != "HSV" else "RGB").save(tmp_path / f"x.{suffix}")
    assert colour(only(tmp_path)) == (255, 255, 255)


def bomb(path: Path) -> None:
    """A PNG that says it is 60000x60000."""
    save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60000, 60000)
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (60, 60, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-4000])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"),
        lambda p: p.write_text("<html>not found</html>"),
        cut_short,
        bomb,
        lambda p: p.symlink_to("nowhere.png"),
    ],
    ids=["empty", "head only", "html", "cut short", "bomb", "dead link"],
)
def test_what_cannot_be_read_raises_what_the_core_expects(tmp_path: Path, spoil: Any) -> None:
    spoil(tmp_path / "x.png")
    found = FolderSet(tmp_path)
    with pytest.raises((OSError, ValueError)) as caught:
        found.open(0)
    assert str(caught.value)
    assert found.digest()


def test_a_large_picture_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "x.png", size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)
    with pytest.raises(ValueError, match=r"100x100 is more than 9999 pixels|DecompressionBomb"):
        FolderSet(tmp_path).open(0)


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        FolderSet(tmp_path / "absent")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        FolderSet(save(tmp_path / "x.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="it has no files"):
        FolderSet(tmp_path / "empty")
    (tmp_path / "empty" / "a.csv").write_text("x")
    with pytest.raises(UsageError, match="its 1 files are of other kinds"):
        FolderSet(tmp_path / "empty")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "real" / "x.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "back").symlink_to(tmp_path / "set")
    found = FolderSet(tmp_path / "set")
    assert [found.image_name(i) for i in range(len(found))] == ["linked/x.png"]


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        save(tmp_path / "x.png").rename(os.fsdecode(path))
    except OSError:
        pytest.skip("this file system has no such names")
    found = FolderSet(tmp_path, tmp_path / "memory.sqlite")
    assert found.image_name(0).encode()
    assert found.open(0).size == (12, 8)
    assert found.digest()


def test_the_digest_follows_content_and_names(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png")
    save(tmp_path / "b" / "x.png")
    first = FolderSet(tmp_path / "a").digest()
    assert FolderSet(tmp_path / "b").digest() == first
    save(tmp_path / "a" / "x.png", "blue")
    assert FolderSet(tmp_path / "a").digest() != first
    (tmp_path / "b" / "x.png").rename(tmp_path / "b" / "y.png")
    assert FolderSet(tmp_path / "b").digest() != first


def test_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "memory" / "digests.sqlite"
    for name in ("x.png", "y.png"):
        os.utime(save(tmp_path / "set" / name), (1e9, 1e9))
    first = FolderSet(tmp_path / "set", memory).digest()
    hashed: list[str] = []
    real = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    assert FolderSet(tmp_path / "set", memory).digest() == first
    assert hashed == []
    os.utime(save(tmp_path / "set" / "y.png", "blue"), (1e9, 1e9 + 7))
    assert FolderSet(tmp_path / "set", memory).digest() != first
    assert hashed == ["y.png"]


@pytest.mark.parametrize("how", ["written over", "put in its place"])
def test_an_image_replaced_under_the_same_size_and_time_is_noticed(how: str, tmp_path: Path) -> None:
    memory = tmp_path / "memory.sqlite"
    first, other = tmp_path / "set" / "x.bmp", tmp_path / "y.bmp"
    for path, shade in ((first, "red"), (other, "blue")):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 8), shade).save(path)
        os.utime(path, (1e9, 1e9))
    digest = FolderSet(tmp_path / "set", memory).digest()
    assert FolderSet(tmp_path / "set", memory).digest() == digest
    before = first.stat()
    if how == "written over":
        first.write_bytes(other.read_bytes())
        os.utime(first, (1e9, 1e9))
    else:
        other.rename(first)
    assert (first.stat().st_size, first.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert FolderSet(tmp_path / "set", memory).digest() != digest


def test_a_folder_stays_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "set" / "x.png")
    monkeypatch.chdir(tmp_path)
    found = FolderSet(Path("set"))
    monkeypatch.chdir("/")
    assert found.open(0).size == (12, 8)


def test_a_broken_memory_costs_only_time(tmp_path: Path) -> None:
    save(tmp_path / "set" / "x.png")
    expected = FolderSet(tmp_path / "set").digest()
    (tmp_path / "memory").write_bytes(b"not a data base at all, whatever its name may say" * 50)
    assert FolderSet(tmp_path / "set", tmp_path / "memory").digest() == expected
    assert FolderSet(tmp_path / "set", tmp_path / "memory" / "below-a-file").digest() == expected


def test_a_union_keeps_the_sets_apart(tmp_path: Path) -> None:
    save(tmp_path / "one" / "birds" / "x.png", "red")
    save(tmp_path / "two" / "birds" / "x.png", "blue")
    save(tmp_path / "two" / "birds" / "y.png", "lime")
    sets = [FolderSet(tmp_path / "one" / "birds"), FolderSet(tmp_path / "two" / "birds")]
    union = UnionSet(sets)
    assert [union.image_name(i) for i in range(len(union))] == ["birds/x.png", "birds-2/x.png", "birds-2/y.png"]
    assert [colour(union.open(i)) for i in range(3)] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert union.digest() not in {part.digest() for part in sets} | {UnionSet(sets[::-1]).digest()}
    with pytest.raises(IndexError):
        union.open(3)


def test_pipes_devices_and_links_to_themselves_do_no_harm(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    for name, to in {"c.png": "/dev/zero", "d.png": "d.png", "e": ".", "f.png": "b.png", "g.png": "gone"}.items():
        (tmp_path / name).symlink_to(to)
    found = FolderSet(tmp_path)
    assert [found.image_name(n) for n in range(len(found))] == ["a.png", "d.png", "g.png"]
    assert found.digest()
    for index in (1, 2):
        with pytest.raises(OSError, match=r"symbolic|No such file"):
            found.open(index)


def test_images_opened_lately_are_not_opened_again() -> None:
    probing, size = Blobs(), 64 * 48 * 3
    known = RememberedSet(probing, room=2 * size)
    for index in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1
        assert known.open(index).tobytes() == Blobs().open(index).tobytes()
    assert probing.opened[:3] == [1, 2, 1]
    known = RememberedSet(probing, room=size - 1)
    assert known.open(3).tobytes() == known.open(3).tobytes()
    assert probing.opened[3] == 2


def test_who_changes_a_remembered_image_changes_a_copy() -> None:
    class Banded(Blobs):
        def open(self, index: int) -> Image.Image:
            image = super().open(index)
            image.info["bands"] = np.zeros((48, 64, 5))
            return image

    known = RememberedSet(Banded())
    for _ in range(3):
        image = known.open(0)
        assert image.tobytes() == Blobs().open(0).tobytes()
        assert not image.info["bands"].any()
        image.paste((1, 2, 3), (0, 0, 64, 48))
        image.info["bands"] += 1


def deep(path: Path, top: int, kind: str = "uint16") -> None:
    values = np.linspace(0, top, 48 * 32).reshape(32, 48).astype(kind)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("top", "kind", "name", "narrow"),
    [
        (65535, "uint16", "x.png", False),
        (4095, "uint16", "x.png", True),
        (255, "uint16", "x.png", True),
        (255, "int32", "x.tif", True),
        (65535, "int32", "x.tif", False),
        (10**8, "int32", "x.tif", False),  # from its least value to its greatest
        (31, "uint8", "x.png", False),  # a dark picture of 8 bits is what it is
        (4095, "rgb", "x.tif", True),
        (65535, "rgb", "x.tif", False),
    ],
)
def test_an_image_that_uses_little_of_its_bits_is_marked(
    tmp_path: Path, top: int, kind: str, name: str, narrow: bool
) -> None:
    if kind == "rgb":
        tifffile = pytest.importorskip("tifffile")
        values = np.linspace(0, top, 48 * 32 * 3).reshape(32, 48, 3).astype(np.uint16)
        tifffile.imwrite(tmp_path / name, values, photometric="rgb")
    else:
        deep(tmp_path / name, top, kind)
    assert bool(FolderSet(tmp_path).open(0).info.get("narrow")) == narrow


def test_files_without_an_extension_and_mpo_are_read(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10), "red")
    picture.save(tmp_path / "plain", "PNG")
    picture.save(tmp_path / "stereo.mpo", "MPO", save_all=True, append_images=[Image.new("RGB", (20, 10), "blue")])
    (tmp_path / "notes").write_text("no image")
    found = FolderSet(tmp_path)
    assert [found.image_name(n) for n in range(len(found))] == ["plain", "stereo.mpo"]
    assert all(found.open(n).getpixel((3, 3))[0] > 200 for n in range(2))
