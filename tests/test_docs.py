"""What the documents show is run as it stands there."""

from __future__ import annotations

import re
import tomllib
import types
from pathlib import Path

import pytest
from PIL import Image

from dnd.api import Runtime
from dnd.config.read import build_run, read_run
from dnd.plugin.registry import KINDS, Registry

DOCS = Path(__file__).parent.parent / "docs"


def block(page: str, language: str, number: int = 0) -> str:
    """A fenced block of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)[number]


def test_the_plugin_of_the_guide_works() -> None:
    module = types.ModuleType("mean_colour")
    exec(block("plugins.md", "python"), vars(module))
    (captioner,) = module.register_captioners()
    made = captioner(captioner.Config(article="the"), Runtime("cpu", Path))
    red, blue = Image.new("RGB", (5, 4), (200, 10, 10)), Image.new("RGB", (3, 3), (0, 0, 90))
    with made:
        assert made.caption([red, blue]) == ["the red picture", "the blue picture"]
    assert issubclass(captioner, KINDS["captioner"].interface)
    project = tomllib.loads(block("plugins.md", "toml"))
    assert project["project"]["entry-points"]["dnd"] == {"mean-colour": "mean_colour"}


def test_the_run_file_of_the_guide_is_valid(tmp_path: Path) -> None:
    tables = tomllib.loads(block("runfile.md", "toml"))
    tables["probing"]["set"] = str(tmp_path)
    run = build_run(tables, Registry.load())
    assert run.exemplars.k == 10
    assert run.target.name == "transformers"
    assert run.target.units == "0-9,12"


@pytest.mark.parametrize("name", ["default", "photos"])
def test_installed_run_files_are_valid(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    options = {} if name == "default" else {"probing.sets": [str(tmp_path)]}
    run = read_run(name, Registry.load(), options=options)
    assert build_run(tomllib.loads(run.to_toml()), Registry.load()) == run
