"""What the documents show is run as it stands there; what they cite exists."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
import types
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pydantic
import pytest
from click.testing import CliRunner
from PIL import Image

from dnd.api import Runtime
from dnd.cli.main import cli
from dnd.config.read import build_run, read_run
from dnd.config.run import CORE_SECTIONS, General, LayerSettings, Refine
from dnd.plugin.registry import KINDS, Registry
from dnd.results.unit import Candidate, Exemplar, ScoredConcept, UnitResult

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks" / "RESULTS.md"])
WRITTEN = [page for page in PAGES if page.name != "reference.md"]
CORE: dict[str, type[pydantic.BaseModel]] = {
    "target": LayerSettings,
    "method": Refine,
    **CORE_SECTIONS,
}


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page; "" names those without a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [text for named, text in fenced if named == language]


def block(page: str, language: str, word: str = "") -> str:
    """The first block of a page that has the word."""
    return next(text for text in blocks(DOCS / page, language) if word in text)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- pages and links ---------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """As GitHub names a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            missing.append(target)
    assert not missing


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in DOCS.glob("*.md") if f"(docs/{page.name})" not in text] == []


def test_pages_that_the_code_cites_exist() -> None:
    places = [
        file for folder in ("dnd", "plugins", "benchmarks", "tests", ".ci") for file in (ROOT / folder).rglob("*")
    ]
    missing = set()
    for file in [*places, ROOT / "Makefile", ROOT / "pyproject.toml"]:
        if file.suffix not in (".py", ".toml", ".in", ".js", ".md", ".html", "") or not file.is_file():
            continue
        for cited in re.findall(r"\bdocs/[\w./-]+\.\w+", file.read_text("utf-8", "replace")):
            if not (ROOT / cited).exists():
                missing.add((name(file), cited))
    assert not missing


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "reference.md").read_text("utf-8") == module.reference(), "run: python docs/make_reference.py"


def test_the_glossary_has_every_setting_and_key() -> None:
    text = (DOCS / "method.md").read_text("utf-8")
    terms = set(re.findall(r"`([\w.]+)`", text[text.index("## Glossary") :]))
    settings = {f"{section}.{key}" for section, model in CORE.items() for key in model.model_fields}
    keys = {
        field.alias or key
        for part in (UnitResult, Exemplar, Candidate, ScoredConcept)
        for key, field in part.model_fields.items()
    }
    assert settings | set(General.model_fields) | keys <= terms


# --- commands ----------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """Every line of a block that is a `dnd ...` command."""
    for text in blocks(page, ""):
        for line in re.sub(r"\$\(.*?\)", "0", text.replace("\\\n", " ")).splitlines():
            found = re.match(r"(?:\S*/bin/)?dnd(?: --sealed)? (?=[a-z])(.*)", re.sub(r"^(unshare -rn|\$) ", "", line))
            if found:
                yield shlex.split(found[1], comments=True)


def settings_of(section: str) -> set[str]:
    """Every setting that some plugin of the section has, and the core's own."""
    kind = "probing-set" if section == "probing" else section
    classes = [entry.cls for entry in Registry.load().entries if entry.kind == kind and entry.cls]
    return {key for cls in classes for key in cls.Config.model_fields} | set(
        getattr(CORE.get(section), "model_fields", ())
    )


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_commands_are_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their commands, options and settings exist, and so do the run files they name; nothing is run."""
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        context, command = click.Context(cli, info_name="dnd"), cli
        rest = words
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest[0])
            assert found is not None, words
            context, command, rest = click.Context(found, parent=context), found, rest[1:]
        try:
            parsed = command.make_context(command.name, list(rest), parent=context.parent)
        except click.BadParameter as error:
            if isinstance(error, click.MissingParameter) or "not exist" not in error.message:
                raise
            continue
        if command.name in ("run", "doctor"):
            check_run(parsed.params, words)


def check_run(given: dict[str, object], words: list[str]) -> None:
    source = given.get("runfile")
    if isinstance(source, str) and "/" not in source and not source.endswith(".toml"):
        assert source in {point.name for point in entry_points(group="dnd.runfiles")}, words
    for setting in given.get("settings") or ():  # type: ignore[attr-defined]
        section, _, key = setting.partition("=")[0].partition(".")
        assert key in settings_of(section) if key else section in General.model_fields, setting


# --- snippets ----------------------------------------------------------------------------------------


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
    tables = tomllib.loads(block("your-network.md", "toml", "seed = 0"))
    tables["probing"]["set"] = str(tmp_path)
    run = build_run(tables, Registry.load())
    assert run.exemplars.k == 10
    assert run.target.name == "transformers"
    assert run.target.units == "0-9,12"


def test_the_network_of_the_quickstart_fits_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("my_models.py").write_text(block("quickstart.md", "python", "def net"))
    Path("photos").mkdir()
    Image.new("RGB", (64, 48), "orange").save("photos/orange.png")
    (words,) = [words for words in commands(DOCS / "quickstart.md") if "photos" in words and "my_models:net" in words]
    done = CliRunner().invoke(cli, [*words, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    module, preprocess = importlib.import_module("my_models").net()
    x = preprocess(Image.open("photos/orange.png"))
    assert x.shape == (3, 240, 240)
    assert module.eval()(x[None]).shape == (1, 1000)
    assert words[words.index("--layer") + 1] in dict(module.named_modules())


@pytest.mark.parametrize("name", ["default", "photos"])
def test_installed_run_files_are_valid(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    options = {} if name == "default" else {"probing.sets": [str(tmp_path)]}
    run = read_run(name, Registry.load(), options=options)
    assert build_run(tomllib.loads(run.to_toml()), Registry.load()) == run
