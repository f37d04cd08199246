"""The rooms of dnd/: each imports those above it, none below it, and nothing goes round in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parent.parent / "dnd"
ROOMS = (
    *("errors", "files", "text", "api", "offline", "plugin", "store", "models", "runtime", "config", "target"),
    *("probing", "results", "testing", "pipeline", "analysis", "evaluation", "bench", "doctor", "cli"),
)
"""From the ground up."""
FREE = ("dnd", "dnd.__main__")
"""The front door: it imports where it is asked to."""


def modules() -> dict[str, Path]:
    """Every module of dnd/ by its dotted name, but for what runs elsewhere: children and the template."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = ["dnd", *file.relative_to(ROOT).with_suffix("").parts]
        if "children" not in parts:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of dnd/ that a file imports anywhere in it: in functions and for type hints too."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative imports hide which room they enter"
                for alias in node.names:
                    module = node.module or ""
                    yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module

    return {name for name in names() if name in known}


def arrows() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(file, known) - {name} for name, file in known.items() if name not in FREE}


def room(name: str) -> str:
    return name.split(".")[1]


def test_every_room_is_in_the_plan() -> None:
    assert {room(name) for name in modules() if name not in FREE} == set(ROOMS)


def test_nothing_imports_a_room_below_it() -> None:
    climbing = [
        f"{name} -> {other}"
        for name, others in arrows().items()
        for other in others
        if other not in FREE and ROOMS.index(room(other)) > ROOMS.index(room(name))
    ]
    assert climbing == []


def test_no_import_goes_round_in_a_circle() -> None:
    try:
        TopologicalSorter(arrows()).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


PLUGINS = ROOT.parent / "plugins"


def test_bundled_plugins_import_what_an_outside_one_may() -> None:
    """`dnd.api` alone, as docs/plugins.md asks of every plugin: in functions and for type hints too."""
    past_it = []
    for file in sorted(PLUGINS.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            reached = [name for name in names if name.split(".")[0] == "dnd"]
            past_it += [f"{file.relative_to(PLUGINS)}: {name}" for name in reached if not name.startswith("dnd.api")]
    assert past_it == []


def test_what_stands_at_the_top_of_site_packages_is_a_plugin() -> None:
    """Each folder or module of plugins/ is named by an entry point."""
    points = {point.value.partition(".")[0] for group in ("dnd", "dnd.runfiles") for point in entry_points(group=group)}
    there = {path.stem for path in PLUGINS.iterdir() if path.name.startswith("dnd_")}
    assert there == points


BACKENDS = r"microworld|blip|llama|vllm|sdxl|efficientnet|broden|diffusers|bitsandbytes|\bunet\b|\bvae\b"


def test_the_core_names_no_backend() -> None:
    """What a plugin knows it says through `dnd.api`."""
    files = [
        file for file in ROOT.rglob("*") if file.is_file() and file.suffix in (".py", ".in", ".js", ".css", ".html")
    ]
    assert len(files) > 100
    named = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        if re.search(BACKENDS, line, re.IGNORECASE)
    ]
    assert named == []


def test_the_microworld_is_named_by_its_own_plugin_alone() -> None:
    """Defaults, prompts and run files of the full-size backends are made for photographs."""
    files = [file for file in PLUGINS.rglob("*") if file.suffix in (".py", ".toml")]
    elsewhere = [file for file in files if "dnd_microworld" not in file.parts]
    assert len(elsewhere) > 50
    named = [str(file.relative_to(PLUGINS)) for file in elsewhere if "microworld" in file.read_text("utf-8").lower()]
    assert named == []
