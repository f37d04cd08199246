"""What is cheap stays cheap: heavy libraries are imported where they are needed, and nowhere else."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "diffusers", "accelerate", "torchvision", "timm", "skimage", "scipy", "pyarrow")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    code = f"import sys\n{code}\nprint('\\nMODULES', *{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


def command(*arguments: str) -> str:
    run = f"main({list(arguments)!r})"
    return f"from dnd.cli.main import main\ntry: {run}\nexcept SystemExit as e: assert not e.code, e.code"


@pytest.mark.parametrize(
    ("code", "also"),
    [
        ("import dnd", ("pluggy", "pydantic", "numpy", "rich", "click", "PIL")),
        (command("--help"), ("pluggy", "pydantic", "numpy", "rich", "PIL")),
        (command("run", "--help"), ("pluggy", "pydantic", "numpy", "rich", "PIL")),
        (command("plugins"), ()),
        (command("plugins", "--json"), ()),
        (command("models", "list"), ()),
        ("import dnd.api, dnd.plugin.registry, dnd.config.read, dnd.models.weights", ("rich",)),
    ],
)
def test_nothing_heavy_is_imported(code: str, also: tuple[str, ...]) -> None:
    assert modules_after(code) & {*HEAVY, *also} == set()


def test_the_pipeline_imports_scipy_only_for_crops() -> None:
    assert modules_after("import dnd.pipeline.execute") & {"scipy", "skimage", "transformers", "diffusers"} == set()


def test_help_imports_no_plugin() -> None:
    assert {m for m in modules_after(command("--help")) if m.startswith("dnd_")} == set()
