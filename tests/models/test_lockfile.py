"""models.lock is strict: what it says is what there is, and nothing that could run code gets into it."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd.errors import ModelError
from dnd.models.lockfile import LockedFile, LockedModel, LockedPart, lock_text, parse_lock, read_lock, write_lock

REVISION = "0123456789abcdef0123456789abcdef01234567"

ENTRY = f"""
[[model]]
name = "a"
role = "captioner"
source = "hub:o/r@{REVISION}"
licence = "mit"
gated = false
files = [{{ path = "config.json", size = 2, sha256 = "{"0" * 64}" }}]
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("version = 2", "version 2; this dnd reads up to 1"),
        ("version = 0", "version 0 does not exist"),
        ("version = 1" + ENTRY.replace('name = "a"', 'name = "Models.lock"'), "the store has a file of that name"),
        ("version = 1" + ENTRY.replace('name = "a"', 'name = "../a"'), "name"),
        (ENTRY, "version"),
        ("version = 1" + ENTRY + ENTRY, "two models of one name"),
        ("version = 1\nextra = 1" + ENTRY, "extra"),
        ("version = 1" + ENTRY.replace("gated = false", 'gated = "no"'), "gated"),
        ("version = 1" + ENTRY.replace("gated = false", ""), "gated"),
        ("version = 1" + ENTRY.replace("0000", "000g"), "sha256"),
        ("version = 1" + ENTRY.replace("config.json", "../config.json"), "not a path inside"),
        ("version = 1" + ENTRY.replace("config.json", "/config.json"), "not a path inside"),
        ("version = 1" + ENTRY.replace("config.json", "model.bin"), "hide it"),
        ("version = 1" + ENTRY.replace(REVISION, "main"), "source"),
        ("version = 1" + ENTRY.replace("hub:o/r@" + REVISION, "package:a/../b"), "source"),
        ("version = 1" + ENTRY.replace("size = 2", "size = -2"), "size"),
        ("version = = 1", "cannot read"),
    ],
)
def test_a_lock_file_that_is_not_strict_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "l").write_text(text)
    with pytest.raises(ModelError) as caught:
        read_lock(tmp_path / "l")
    assert words in f"{caught.value}"


def test_the_committed_lock_file_reads_back_unchanged(tmp_path: Path) -> None:
    path = Path("models.lock")
    write_lock(tmp_path / "l", read_lock(path))
    assert (tmp_path / "l").read_text() == path.read_text()


PART = f"""
[[model.part]]
source = "hub:o/vae@{REVISION}"
under = "vae"
licence = "mit"
gated = false
files = [{{ path = "model.safetensors" }}]
"""


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (PART.replace('under = "vae"', 'under = "../vae"'), "not a path inside"),
        (PART.replace('under = "vae"', 'under = "/vae"'), "not a path inside"),
        (PART.replace('under = "vae"', 'under = ""'), "not a path inside"),
        (PART.replace('under = "vae"', 'under = "config.json"'), "is a file and the folder of"),
        (PART.replace("hub:o/vae@" + REVISION, "package:a/b"), "source"),
        (PART.replace(REVISION, "main"), "source"),
        (PART + PART, "are one file"),
        (PART.replace("model.safetensors", "model.bin"), "hide it"),
        (PART.replace("gated = false", ""), "gated"),
        (PART + "extra = 1", "extra"),
    ],
)
def test_a_part_that_is_not_strict_is_refused(part: str, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_lock("version = 1" + ENTRY + part, "l")
    assert words in f"{caught.value}"


@pytest.mark.parametrize(
    ("one", "two"),
    [("a.json", "a.json"), ("a.json", "A.json"), ("\u00e9.json", "e\u0301.json"), ("\ufb01.json", "fi.json")],
)
def test_two_files_that_some_system_takes_for_one_are_refused(one: str, two: str) -> None:
    with pytest.raises(ValueError, match="are one file"):
        model([LockedFile(path=one), LockedFile(path=two)])


@pytest.mark.parametrize(
    "path", ["a/../b.json", "./a.json", "a//b.json", "a\\b.json", "C:a.json", ".git/a.json", "a\n.json", "a./b.json"]
)
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        LockedFile(path=path)


def test_two_models_that_differ_by_case_only_are_refused() -> None:
    with pytest.raises(ModelError, match="two models of one name: 'a' and 'A'"):
        parse_lock("version = 1" + ENTRY + ENTRY.replace('name = "a"', 'name = "A"'), "l")


def model(files: list[LockedFile], parts: tuple[LockedPart, ...] = ()) -> LockedModel:
    return LockedModel(
        name="m", role="r", source=f"hub:o/r@{REVISION}", licence="mit", gated=False, files=tuple(files), part=parts
    )


def test_a_model_of_two_parts_is_one_folder() -> None:
    vae = LockedPart(
        source=f"hub:o/vae@{REVISION}",
        under="vae",
        licence="apache-2.0",
        gated=True,
        files=(LockedFile(path="v.json"),),
    )
    both = model([LockedFile(path="u.json", size=3, sha256="0" * 64)], (vae,))
    assert [file.path for file in both.files] == ["u.json", "vae/v.json"]
    assert (both.size, both.unpinned, both.licences) == (3, ["vae/v.json"], "mit, apache-2.0")
    whole = both.with_pins({"vae/v.json": LockedFile(path="vae/v.json", size=2, sha256="1" * 64)})
    assert (whole.size, whole.unpinned) == (5, [])
    assert whole.part[0].files == (LockedFile(path="v.json", size=2, sha256="1" * 64),)
    assert both.same_files(whole)
    assert not whole.same_files(whole.with_pins({"u.json": LockedFile(path="u.json", size=3, sha256="2" * 64)}))
    assert not both.same_files(model([LockedFile(path="u.json")]))
    assert parse_lock(lock_text([whole]), "l") == {"m": whole}


def test_sdxl_of_the_committed_lock_file_has_the_repaired_vae_only() -> None:
    files = [
        file.path for file in read_lock(Path("models.lock"))["sdxl-base-1.0"].files if file.path.startswith("vae/")
    ]
    assert sorted(files) == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]


def test_nothing_in_the_committed_lock_file_has_half_a_digest() -> None:
    for entry in read_lock(Path("models.lock")).values():
        assert not entry.packaged or not entry.unpinned, entry.name


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60)
@given(role=texts, licence=texts, stems=st.lists(st.text(string.ascii_lowercase, min_size=1), unique=True, min_size=1))
def test_whatever_is_written_reads_back(role: str, licence: str, stems: list[str]) -> None:
    files = [LockedFile(path=f"{stem}.json", size=len(stem), sha256="ab" * 32) for stem in stems]
    entry = model(files).model_copy(update={"role": role, "licence": licence})
    assert parse_lock(lock_text([entry]), "l") == {"m": entry}


@settings(max_examples=150)
@given(data=st.data())
def test_a_spoilt_lock_file_is_refused_or_read_never_a_crash(data: st.DataObject) -> None:
    text = "version = 1" + ENTRY + PART
    at = data.draw(st.integers(0, len(text) - 1))
    length, new = data.draw(st.integers(0, 5)), data.draw(st.text(max_size=5))
    try:
        found = parse_lock(text[:at] + new + text[at + length :], "l")
    except ModelError:
        return
    assert all(not file.path.startswith(("/", "..")) for entry in found.values() for file in entry.files)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot read l"):
        parse_lock("a = " + "[" * 100_000, "l")
