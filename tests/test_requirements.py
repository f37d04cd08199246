"""Packages that a plugin needs: there, and not too old."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from dnd import api
from dnd.errors import PluginError
from dnd.plugin.registry import Entry
from dnd.plugin.requirements import check_packages


class Needing(api.Captioner):
    requires = ("json", "toy_part")

    def caption(self, images: Any) -> list[str]:
        return []


ENTRY = Entry("captioner", "needing", Needing, "toy-plugin", "1", "ok")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Installs a package, with a module of its name unless it is "toy-plugin"."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, version: str, *requires: str) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
        if name != "toy-plugin":
            (tmp_path / f"{name.replace('-', '_')}.py").touch()

    return install


@pytest.mark.parametrize(
    ("version", "asked", "fits"),
    [
        ("5.17.0", ">=5.17", True),
        ("5.18.0.dev1", ">=5.17", True),
        ("5.9", ">=5.17", False),
        ("5.16.9", ">=5.17,<6", False),
        ("10", ">=9.9", True),
        ("0.1", "", True),
    ],
)
def test_what_is_too_old_is_named_with_its_remedy(installed: Any, version: str, asked: str, fits: bool) -> None:
    installed("toy-plugin", "1", f"Toy.Part{asked} ; extra == 'needing'", "toy-part>=0.0.1; extra == 'test'")
    installed("toy-part", version)
    if fits:
        check_packages([ENTRY])
        return
    says = rf"captioner 'needing' needs toy_part 5\.17 or later \({version} is installed\)"
    with pytest.raises(PluginError, match=says) as caught:
        check_packages([ENTRY])
    assert caught.value.hint == "Run: pip install 'toy-plugin[needing]'"


def test_what_is_missing_is_named_alone(installed: Any) -> None:
    installed("toy-plugin", "1", "toy-part>=2; extra == 'needing'")
    with pytest.raises(PluginError, match=r"captioner 'needing' needs toy_part\n") as caught:
        check_packages([ENTRY])
    assert caught.value.hint == "Run: pip install 'toy-plugin[needing]'"


def test_the_extra_with_least_beside_it_is_named(installed: Any) -> None:
    """Not one of everything, whatever its name: a pip command of gigabytes is no remedy for a missing 60 MB."""
    needed = [f"toy-part; extra == '{extra}'" for extra in ("dev", "small", "all")]
    installed(
        "toy-plugin", "1", *needed, *(f"more-{n}; extra == '{extra}'" for n in (1, 2) for extra in ("dev", "all"))
    )
    with pytest.raises(PluginError) as caught:
        check_packages([ENTRY])
    assert caught.value.hint == "Run: pip install 'toy-plugin[small]'"


def test_a_plugin_of_no_distribution_asks_for_no_version(installed: Any) -> None:
    installed("toy-part", "0.1")
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.requires("toy-plugin")
    check_packages([ENTRY])
