"""Plugins are found through entry points; what is wrong with one stays with that one."""

from __future__ import annotations

from pathlib import Path

import pytest
from outside import CAPTIONER, install

from dnd.api import Captioner, Runtime
from dnd.errors import PluginError, UsageError
from dnd.plugin.registry import KINDS, Entry, Registry


def broken_reason(registry: Registry, distribution: str) -> str:
    entries = [e for e in registry.entries if e.distribution == distribution]
    assert len(entries) == 1, entries
    assert entries[0].state == "broken"
    return entries[0].reason


def test_an_outside_plugin_is_found_and_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "acme-words", CAPTIONER.format(name="acme"))
    registry = Registry.load()
    entry = registry.find("captioner", "acme")
    assert (entry.distribution, entry.version, entry.state) == ("acme-words", "1.2", "ok")
    assert "acme" in registry.names("captioner")
    config = entry.cls.Config(words=2)
    backend = registry.make("captioner", "acme", config, Runtime("cpu", Path))
    assert isinstance(backend, Captioner)
    with backend:
        assert backend.caption([None]) == ["xx"]


def test_two_plugins_with_one_module_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = install(monkeypatch, tmp_path, "acme-words", CAPTIONER.format(name="acme"))
    install(monkeypatch, tmp_path, "other-words", "", points={"dnd": f"other = {module}"})
    registry = Registry.load()
    assert broken_reason(registry, "other-words").startswith("its module acme_words is also that of acme-words:")
    assert "acme" in registry.names("captioner")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise RuntimeError('no luck\\nat all')", "RuntimeError: no luck at all (bad_one.py, line 1)"),
        ("import sys; sys.exit(4)", "SystemExit: 4"),
        ("import a_module_that_is_not_here", "No module named 'a_module_that_is_not_here'"),
        ("x = (", "SyntaxError"),
        ("def register_captioners(): return []", "no hook marked with dnd.api.hookimpl"),
        (
            "from dnd.api import hookimpl\n@hookimpl\ndef register_captioner(): return []",
            "'register_captioner' is not a hook. Did you mean 'register_captioners'?",
        ),
        ("from dnd.api import hookimpl\n@hookimpl\ndef register_scorers(config): return []", "config"),
        (
            "from dnd.api import hookimpl\n@hookimpl\ndef register_scorers(): return None",
            "gives None, which is no list",
        ),
        (
            "from dnd.api import hookimpl\n@hookimpl\ndef register_scorers(): raise KeyError('k')",
            "KeyError: 'k' (bad_one.py, line 3)",
        ),
        ("from dnd.api import hookimpl\n@hookimpl(wrapper=True)\ndef register_scorers(): yield", "hook wrapper"),
        ("DND_API = 99\n" + CAPTIONER.format(name="late"), "version 99 of dnd's plugin interface"),
        (CAPTIONER.format(name="a b"), "Mine.name must be a word"),
        (CAPTIONER.format(name="x").replace('name = "x"', ""), "Mine.name must be a word"),
        (CAPTIONER.format(name="x").replace("def caption", "def captions"), "Mine has no caption"),
        (CAPTIONER.format(name="x").replace("class Config(Config)", "class Config"), "subclass of dnd.api.Config"),
        (CAPTIONER.format(name="x").replace("words: int", "backend: int"), "setting named 'backend'"),
        (CAPTIONER.format(name="x").replace("register_captioners", "register_scorers"), "subclass of dnd.api.Scorer"),
    ],
)
def test_a_broken_plugin_is_listed_and_the_others_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, why: str
) -> None:
    install(monkeypatch, tmp_path, "bad-one", code)
    install(monkeypatch, tmp_path, "good-one", CAPTIONER.format(name="good"))
    registry = Registry.load()
    assert why in broken_reason(registry, "bad-one")
    assert registry.find("captioner", "good").state == "ok"


def test_a_broken_plugin_is_quoted_when_its_name_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "bad-one", "raise RuntimeError('no luck')")
    install(monkeypatch, tmp_path, "worse-one", CAPTIONER.format(name="worse").replace("def caption", "def captions"))
    registry = Registry.load()
    with pytest.raises(PluginError, match=r"bad-one 1\.2.*RuntimeError: no luck"):
        registry.find("captioner", "bad-one")
    with pytest.raises(PluginError, match="Mine has no caption"):
        registry.find("captioner", "worse")
    with pytest.raises(UsageError, match="no captioner named 'other'") as caught:
        registry.find("captioner", "other")
    assert "bad-one" in caught.value.hint


def test_a_bug_in_a_plugins_constructor_says_whose_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bug = "    def __init__(self, config, runtime): raise KeyError('k')\n"
    install(
        monkeypatch,
        tmp_path,
        "bad-one",
        CAPTIONER.format(name="bad").replace("    def caption", f"{bug}    def caption"),
    )
    registry = Registry.load()
    with pytest.raises(KeyError) as caught:
        registry.make("captioner", "bad", registry.find("captioner", "bad").cls.Config(), Runtime("cpu", Path))
    assert caught.value.__notes__ == ["in the captioner 'bad', while it was made"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "heavy-one", "import not_installed_here", extras="heavy-one")
    assert "pip install 'heavy-one[heavy-one]'" in broken_reason(Registry.load(), "heavy-one")


def test_two_distributions_with_one_name_clash_for_that_name_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install(monkeypatch, tmp_path, "first-one", CAPTIONER.format(name="same"))
    install(monkeypatch, tmp_path, "second-one", CAPTIONER.format(name="same"))
    install(monkeypatch, tmp_path, "third-one", CAPTIONER.format(name="other"))
    registry = Registry.load()
    with pytest.raises(PluginError, match="first-one and second-one"):
        registry.find("captioner", "same")
    assert "same" not in registry.names("captioner")
    assert registry.find("captioner", "other").distribution == "third-one"


def test_the_same_name_in_another_kind_is_no_clash() -> None:
    entries = [
        Entry("captioner", "x", KINDS["captioner"].interface, "a", "1", "ok"),
        Entry("scorer", "x", KINDS["scorer"].interface, "b", "1", "ok"),
    ]
    registry = Registry(entries)
    assert registry.find("captioner", "x").distribution == "a"
    assert registry.find("scorer", "x").distribution == "b"


def test_an_unknown_name_gets_a_suggestion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, tmp_path, "acme-words", CAPTIONER.format(name="acme"))
    with pytest.raises(UsageError) as caught:
        Registry.load().find("captioner", "acmee")
    assert "Did you mean 'acme'?" in caught.value.hint


def test_every_bundled_plugin_loads() -> None:
    broken = [e for e in Registry.load().entries if e.distribution == "dnd-describe" and e.state != "ok"]
    assert broken == []


def test_the_core_names_no_plugin() -> None:
    """Nothing in dnd/ knows what is bundled: only entry points do."""
    names = {path.stem for path in Path("plugins").iterdir() if not path.name.startswith(("_", "."))}
    assert "dnd_blip2" in names
    core = {path: path.read_text() for path in Path("dnd").glob("*.py")}
    assert [(path, name) for path, text in core.items() for name in names if name in text] == []


def test_every_bundled_module_with_hooks_is_offered() -> None:
    """One without an entry point would be in the wheel and for nobody."""
    import tomllib
    from pathlib import Path

    root = Path(__file__).parents[2]
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["dnd"].values()
    files = [*root.glob("plugins/*.py"), *root.glob("plugins/*/__init__.py")]
    with_hooks = {f.parent.name if f.name == "__init__.py" else f.stem for f in files if "hookimpl\n" in f.read_text()}
    assert with_hooks == set(points)
    assert len(with_hooks) > 10
