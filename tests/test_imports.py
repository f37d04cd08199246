"""What is cheap stays cheap: heavy libraries are imported where they are needed, and nowhere else."""

from __future__ import annotations

import os
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
    return f"import dnd.cli\ntry: dnd.cli.main({list(arguments)!r})\nexcept SystemExit as e: assert not e.code, e.code"


@pytest.mark.parametrize(
    ("code", "also"),
    [
        ("import dnd", ("pluggy", "pydantic", "numpy", "rich", "click", "PIL")),
        (command("--help"), ("pluggy", "pydantic", "numpy", "rich", "PIL")),
        (command("run", "--help"), ("pluggy", "pydantic", "numpy", "rich", "PIL")),
        (command("plugins"), ()),
        (command("plugins", "--json"), ()),
        (command("models", "list"), ()),
        ("import dnd.api, dnd.registry, dnd.runfile, dnd.weights", ("rich",)),
    ],
)
def test_nothing_heavy_is_imported(code: str, also: tuple[str, ...]) -> None:
    assert modules_after(code) & {*HEAVY, *also} == set()


def test_help_imports_no_plugin() -> None:
    assert {m for m in modules_after(command("--help")) if m.startswith("dnd_")} == set()


def test_help_costs_little_cpu() -> None:
    """Within 150 ms of CPU over a bare interpreter; the best of a few, as other processes disturb."""

    def cost(*arguments: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(cost("-m", "dnd", "--help") for _ in range(5)) - min(cost("-c", "pass") for _ in range(5)) < 0.15
