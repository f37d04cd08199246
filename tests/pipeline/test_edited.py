"""Code and folders that change between two runs in one store: the second run gives new answers, not the old ones."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import toys

from dnd import api
from dnd.config.read import build_run
from dnd.pipeline.execute import execute
from dnd.plugin.registry import Entry, Registry
from dnd.results.run import RunFolder
from dnd.store.source import source_digest

HEAD = "from __future__ import annotations\nimport numpy as np\nimport torch\nimport toys\nfrom dnd import api\n"
CODE = {
    "captioner": """
class Mine(toys.Captioner):
    def caption(self, images):
        return ["a {} thing"] * len(images)
""",
    "summarizer": """
class Mine(toys.Summarizer):
    def summarize(self, requests):
        return [["{}"]] * len(requests)
""",
    "generator": """
class Mine(toys.Generator):
    def generate(self, requests):
        return [toys.flat("{}", request.seed) for request in requests]
""",
    "scorer": """
class Mine(toys.Scorer):
    def score(self, evidence):
        return [[float(concept == "{}") for concept in one.concepts] for one in evidence]
""",
    "probing-set": """
class Mine(api.ProbingSet):
    def __len__(self): return 12
    def image_name(self, index): return f"{{index}}.png"
    def open(self, index): return toys.flat("{}" if index % 4 else "red", index)
    def digest(self): return "always the same"
""",
    "method": """
class Mine(api.Method):
    def describe(self, study):
        from contextlib import nullcontext
        work = lambda batch: [np.array([toys.colour_of(toys.flat("{}", n)) == c for c in toys.COLOURS]) for n in batch]
        found = study.arrays("words", {{}}, {{str(u): u.index for u in study.units}}, nullcontext(), work, batch_size=4)
        for unit in study.units:
            yield api.Label(unit, "labelled", ((list(toys.COLOURS)[int(found[str(unit)].argmax())], 1.0),))
""",
    "target": """
class Mine(api.Target):
    def build(self):
        def preprocess(image):  # of small images alone: nothing shows it in a made-up image of another size
            tensor = toys.preprocess(image)
            return tensor if image.width > 50 else tensor[[{}, 1, 2]]
        return toys.Net(), preprocess
""",
}


@pytest.fixture(autouse=True)
def _forget_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("DND_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "source"))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("edited"):
            del sys.modules[name]


def written(folder: Path, files: dict[str, str]) -> ModuleType:
    """The package `edited` of these files, imported anew as by another process."""
    package = folder / "source" / "edited"
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
        os.utime(package / name, ns=(0, sum(text.encode()) * 10**9))  # or Python takes the module compiled before
    for name in [name for name in sys.modules if name.partition(".")[0].startswith("edited")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    return importlib.import_module("edited")


def label(place: Path, kind: str, cls: type[api.Plugin], **settings: Any) -> RunFolder:
    """A run in the one store of `place` that uses the class, with the toys for everything else."""
    cls.name = "mine"
    known = Registry([*toys.registry().entries, Entry(kind, "mine", cls, "acme", "1", "ok")])
    tables = toys.toy_run(toys.make_photos(place / "photos")).to_dict()
    sections = {"probing-set": ("probing", "set"), "target": ("target", "name"), "method": ("method", "name")}
    section, chooser = sections.get(kind, (kind, "backend"))
    base = {"layers": ["units"]} if kind == "target" else {}
    tables[section] = {**base, chooser: "mine", **settings}
    live = None if kind == "target" else (toys.Net(), toys.preprocess)
    run = build_run(tables, known, live_target=live is not None)
    return execute(run, place / f"run-{len(list(place.glob('run-*')))}", registry=known, live=live)


def answer(run: RunFolder, kind: str) -> object:
    """What hangs on the code."""
    red, green, blue = (run[f"units/{index}"] for index in range(3))
    match kind:
        case "captioner":
            return red.exemplars[0].caption
        case "summarizer":
            return [one.concept for one in red.candidates]
        case "generator":
            return [one.images[0].activation for one in green.candidates]
        case "probing-set":
            return [exemplar.activation for exemplar in blue.exemplars]
        case "target":
            return [exemplar.activation for exemplar in red.exemplars]
        case "scorer":
            return next(one.concept for one in red.candidates if one.score == 1)
        case _:
            return red.concept


def computed(run: RunFolder) -> dict[str, int]:
    return {name: stage["computed"] for name, stage in run.facts["stages"].items()}


@pytest.mark.parametrize("kind", CODE)
def test_an_edited_plugin_does_not_get_its_old_answers(kind: str, tmp_path: Path) -> None:
    """Of whatever kind, at the same version."""
    one, other = ("0", "2") if kind == "target" else ("green", "blue")

    def run_with(word: str) -> RunFolder:
        return label(tmp_path, kind, written(tmp_path, {"__init__.py": HEAD + CODE[kind].format(word)}).Mine)

    first, second, third = run_with(one), run_with(other), run_with(one)
    assert answer(first, kind) == answer(third, kind) != answer(second, kind)
    if kind in ("captioner", "summarizer", "scorer", "method"):
        assert (one in str(answer(first, kind)), other in str(answer(second, kind))) == (True, True)
    assert not any(computed(third).values()), "what was computed with the first code is still in the store"


def test_the_digest_is_of_all_that_a_plugin_is_made_of(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from edited.parts.mine import Mine\n",
        "parts/__init__.py": "",
        "parts/mine.py": "class Mine:\n    def go(self):\n        import edited_helper\n",
        "parts/prompt.txt": "Name it.",
        "../edited_helper.py": "import edited_far\nTABLE, FOLDER = 'edited_table.npy', 'edited_folder'\n",
        "../edited_far.py": "from . import nothing\nimport importlib\nlate = importlib.import_module('edited_late')\n",
        "../edited_late.py": "",
        "../edited_table.npy": "1 2",
        "../edited_folder/deep/more.txt": "more",
    }
    seen = [source_digest(written(tmp_path, files).Mine)]
    assert source_digest(written(tmp_path, files).Mine) == seen[0] != ""
    for name in files:
        files[name] = f"# {name}\n{files[name]}"
        seen.append(source_digest(written(tmp_path, files).Mine))
    assert len(set(seen)) == len(files) + 1, "each file counts"


def test_an_installed_copy_is_named_by_its_version(tmp_path: Path) -> None:
    assert source_digest(pytest.MonkeyPatch) == ""
    assert source_digest(api.Captioner) == ""


def test_the_digest_is_of_the_code_that_runs(tmp_path: Path) -> None:
    """Not of a file that changes after it was imported, in a notebook say: its answers are not there yet."""
    cls = written(tmp_path, {"__init__.py": "class Mine: ...\n"}).Mine
    before = source_digest(cls)
    (tmp_path / "source/edited/__init__.py").write_text("class Mine: scale = 2\n")
    assert source_digest(cls) == before


SCALED = """
from pathlib import Path
class Mine(toys.Scorer):
    class Config(toys.BatchConfig):
        folder: api.ModelFolder
    def score(self, evidence):
        scale = float((self.config.folder / "deep/scale.txt").read_text())
        return [[scale * float(row.mean()) for row in one.activations] for one in evidence]
"""


def test_a_model_folder_is_keyed_by_its_content(tmp_path: Path) -> None:
    """Replaced with equal size and times; a link to a folder, and a new file, count as well."""
    cls = written(tmp_path, {"__init__.py": HEAD + SCALED}).Mine
    folder = tmp_path / "model"
    (tmp_path / "elsewhere").mkdir()
    (folder / "deep").mkdir(parents=True)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")

    def scores(scale: str) -> tuple[float, RunFolder]:
        other = folder / "other.txt"
        other.write_text(scale)
        os.utime(other, ns=(10**18, 10**18))
        other.replace(folder / "deep/scale.txt")
        run = label(tmp_path, "scorer", cls, folder=str(folder))
        return run["units/0"].labels[0].score, run

    (one, first), (two, second), (_, third) = scores("1"), scores("2"), scores("1")
    assert two == pytest.approx(2 * one, rel=1e-3)
    (tmp_path / "elsewhere/more.txt").write_text("more")
    _, fourth = scores("1")
    runs = (first, second, third, fourth)
    assert [computed(run)["scores"] for run in runs] == [3, 3, 0, 3]
    digests = [run.facts["models"][str(folder)] for run in runs]
    assert digests[0] == digests[2]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(("name", "why"), [("missing", "there is no folder"), ("file", "is a file, not a folder")])
def test_a_model_folder_must_be_there(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cls = written(tmp_path, {"__init__.py": HEAD + SCALED}).Mine
    with pytest.raises(api.UsageError, match=f"scorer.folder: .*{why}"):
        label(tmp_path, "scorer", cls, folder=str(tmp_path / name))
