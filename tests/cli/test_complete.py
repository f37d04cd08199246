"""What a shell offers at a tab."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from dnd.cli.main import cli


def offered(*words: str) -> list[str]:
    """For the last of the words, which is not finished."""
    shell = ShellComplete(cli, {}, "dnd", "_DND_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


def test_names_of_what_is_installed_are_offered() -> None:
    assert offered("run", "ph") == ["photos"]
    assert "blip2" in offered("run", "--captioner", "bl")
    assert offered("doctor", "--probe", "microw") == ["microworld", "microworld-landcover"]
    assert "microworld-blip2" in offered("models", "verify", "microworld-")
    assert offered("run", "--scorer", "no-such") == []
    assert offered("plugins", "ne") == ["new", "network-dissection"]
    assert offered("plugins", "check", "blip2-e") == ["blip2-exemplars"]


def test_layers_are_those_of_the_chosen_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tiny.py").write_text(
        "import torch\ndef net(): return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU()), lambda x: x\n"
    )
    monkeypatch.chdir(tmp_path)
    assert offered("run", "--target", "my_tiny:net", "--layer", "") == ["0", "1"]
    assert offered("run", "--target", "my_tiny:net", "--layer", "1") == ["1"]
    assert offered("run", "default", "--layer", "con") == ["concepts", "concepts.0", "concepts.1"]
    assert offered("run", "--target", "nowhere:net", "--layer", "") == [], "nothing, and no traceback"
