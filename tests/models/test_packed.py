"""Which models a run file needs, on a machine that has neither the network under study nor the images."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnd.config.packed import packed_runfile, read_needs
from dnd.errors import UsageError

SDXL = ["sdxl-base-1.0", "sdxl-lightning-4step"]
FULL = ["blip2-opt-2.7b", "llama-3.1-8b-instruct", *SDXL, "clip-vit-large-patch14"]


def test_a_run_file_without_target_and_images_names_its_backends_models() -> None:
    assert read_needs("full")[1] == FULL


def test_the_default_needs_its_targets_model_too() -> None:
    assert set(read_needs("default")[1]) == {f"microworld-{x}" for x in ("target", "blip2", "llama", "sdxl", "clip")}


def test_settings_change_what_is_needed(tmp_path: Path) -> None:
    settings = ["generator.vae=sdxl-vae-fp16-fix", "target.name=microworld", "target.model=resnet-50"]
    tables, names = read_needs("full", settings)
    assert set(names) == {*FULL, "sdxl-vae-fp16-fix", "resnet-50"}
    assert tables["target"] == {"name": "microworld", "model": "resnet-50"}, "no stand-in gets into the run file"
    (tmp_path / "run.toml").write_bytes(packed_runfile("full", settings))
    assert read_needs(str(tmp_path / "run.toml")) == (tables, names)


def test_a_run_file_of_the_users_own_is_packed_as_it_is(tmp_path: Path) -> None:
    text = b'# mine\n[probing]\nset = "/no/such/photos"\n' + b'[captioner]\nbackend = "blip2"\nmodel = "x"\n'
    text += b'[summarizer]\nbackend = "llama"\n[generator]\nbackend = "sdxl"\n[scorer]\nbackend = "mean"\n'
    (tmp_path / "mine.toml").write_bytes(text)
    assert read_needs(str(tmp_path / "mine.toml"))[1] == ["x", "llama-3.1-8b-instruct", "sdxl-base-1.0"]
    assert packed_runfile(str(tmp_path / "mine.toml")) == text


def test_what_is_wrong_with_a_run_file_is_told() -> None:
    with pytest.raises(UsageError, match=r"captioner\.modl: there is no such setting"):
        read_needs("full", ["captioner.modl=x"])
    with pytest.raises(UsageError, match="there is no run file nowhere"):
        read_needs("nowhere")
