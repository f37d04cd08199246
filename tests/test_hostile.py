"""What comes from outside: image files of every kind and name, and bytes where a text file was meant."""

from __future__ import annotations

import csv
import io
import json
import shutil
import string
import unicodedata
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tomli_w
import toys
from bags import Bags
from click.testing import CliRunner
from corpus import NAMES, run_corpus
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dnd.api import read_truth
from dnd.bench.matrix import read_matrix
from dnd.cli.main import cli
from dnd.config.read import build_run
from dnd.config.tables import parse_setting, read_tables
from dnd.errors import DndError, ModelError, UsageError
from dnd.evaluation.tables import read_labels
from dnd.models.lockfile import parse_lock
from dnd.pipeline.execute import execute
from dnd.probing.sets import FolderSet
from dnd.results.export import FORMATS
from dnd.results.run import RunFolder
from dnd.store.toml import parse_toml
from dnd_llama import answers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A run on the corpus by the command line."""
    return run_corpus(tmp_path_factory.mktemp("whole"))


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_images_of_every_kind_are_opened_upright_or_named(whole: tuple[Path, set[str]]) -> None:
    run, bad = whole
    probing = FolderSet(run.parent / "photos")
    names = [probing.image_name(index) for index in range(len(probing))]
    assert set(NAMES) < set(names)
    for index, name in enumerate(names):
        if name not in bad:
            image = probing.open(index)
            assert image.mode == "RGB", name
            assert image.size == {"rotated.jpg": (10, 30), "wide.png": (30_000, 8)}.get(name, image.size)
    record = json.loads((run / "run.json").read_text())
    assert set(record["probing"]["unreadable"]) == bad
    assert "pixels" in record["probing"]["unreadable"]["bomb.png"]
    records = list(RunFolder(run).records())
    assert [one.status for one in records] == ["labelled"] * 3 + ["uninterpretable"]
    sources = {exemplar.source for one in records for exemplar in one.exemplars}
    assert sources <= set(names) - bad
    assert set(NAMES) <= sources
    assert "bytes-\ufffd\ufffd.png" in sources


def test_such_a_run_is_exported(whole: tuple[Path, set[str]], tmp_path: Path) -> None:
    run, _ = whole
    for kind in FORMATS:
        invoke("export", str(run), "--format", kind, "--out", str(tmp_path / kind))
    assert [len(row) for row in csv.reader((tmp_path / "csv").read_text().splitlines())] == [10] * 5
    assert (tmp_path / "jsonl").read_bytes() == (run / "labels.jsonl").read_bytes()
    rows = pq.read_table(tmp_path / "parquet").to_pylist()
    assert set(NAMES) <= {source for row in rows for source in row["sources"]}
    for row in rows:
        for image in row["exemplars"]:
            with Image.open(io.BytesIO(image["bytes"])) as opened:
                opened.load()
    for kind in ("markdown", "latex", "reference"):
        assert len((tmp_path / kind).read_text().splitlines()) >= 5


def test_such_a_run_is_grouped(whole: tuple[Path, set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnd.models.encoder.load_encoder", lambda name: Bags())
    out = tmp_path / "-groups <b>\n"
    found = json.loads(invoke("group", str(whole[0]), "--out", str(out), "--json"))
    assert [one["label"] for one in found["ungrouped"]] == ["red", "green", "blue"]
    assert {file.name for file in out.iterdir()} == {"groups.csv", "groups.json", "groups.svg"}


class Tags(HTMLParser):
    """The elements of a page, and their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_such_a_run_has_cards(whole: tuple[Path, set[str]]) -> None:
    run = RunFolder(whole[0])
    for card in run:
        found = Tags(card._repr_html_())
        assert found.tags <= {"div", "b", "span", "figure", "img", "figcaption"}
        assert found.attributes <= {"style", "title", "src", "alt"}
        for exemplar in card.exemplars:
            assert card.image(exemplar).mode == "RGB"
    assert Tags(run._repr_html_()).tags <= {"table", "thead", "tbody", "tr", "th", "td", "div", "img"}


def test_a_run_in_a_folder_of_a_hostile_name(tmp_path: Path) -> None:
    photos = toys.make_photos(tmp_path / "--photos\n<b>[red]" / "\U0001f98a", 12)
    out = tmp_path / "-run '\"\n[bold]"
    result = execute(toys.toy_run(photos), out, registry=toys.registry(), live=(toys.Net(), toys.preprocess))
    assert result.exit_code == 0
    shutil.rmtree(out)


@pytest.mark.parametrize("name", ["./" + "x" * 5000, "./a\0b", "~nobody-of-this-name/x", "a/" * 3000])
def test_a_folder_that_cannot_be_is_said_not_to_be_there(name: str) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        FolderSet(Path(name))
    tables = {"target": {"name": "Net", "layers": ["units"]}, "probing": {"set": name}, "device": "cpu"}
    with pytest.raises(UsageError, match=r"probing\.set: .* does not exist"):
        build_run(tables, toys.registry(), live_target=True)


# --- bytes where a text file was meant ---------------------------------------------------------------

NEAR_TOML = st.text(alphabet="[]=\"'\n.,#{}0123456789abtrue_-+:TZ \\\u00e9", max_size=60).map(str.encode)
NEAR_CSV = st.text(alphabet=',\n"\r01239 abunitlayertextlabelstatus|-.;\x00\u00b2\u0663', max_size=80)
HEADS = (
    "unit,text\n",
    "layer,unit,text\n",
    "unit,kind,concept\n",
    "layer,unit,status,label\n",
    "layer,unit,description\n",
    "Neuron ID,label\n",
    "unit,category,label,score\n",
    "",
)
CSV = st.one_of(
    st.binary(max_size=80), st.builds(lambda head, rest: (head + rest).encode(), st.sampled_from(HEADS), NEAR_CSV)
)
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def harmless(read: Any, *given: Any) -> None:
    with suppress(DndError):
        read(*given)


@QUICK
@given(data=st.one_of(st.binary(max_size=60), NEAR_TOML))
def test_any_bytes_are_a_run_file_or_an_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(data)
    harmless(lambda: build_run(read_tables(file), toys.registry()))


ENDLESS = {
    "nested arrays": "a = " + "[" * 100_000,
    "nested tables": "a = " + "{a = " * 50_000,
    "nested": "a = " + "[" * 5000 + "]" * 5000,
    "a number": "a = " + "9" * 5000,
    "a dotted key": ".".join("a" * 1_000_000) + " = 1",
    "a quoted dotted key": ".".join(['"a.b"'] * 200_000) + " = 1",
    "an inline dotted key": "a = {" + ".".join("a" * 200_000) + " = 1}",
    "a dotted table": "[" + ".".join("a" * 200_000) + "]",
    "unended strings": '\\"' * 200_000,
    "a long name": f"[probing]\nset = '{'x' * 5000}'",
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_toml_without_end_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    for read in (lambda: build_run(read_tables(file), toys.registry()), lambda: read_matrix(file)):
        with pytest.raises(UsageError):
            read()
    with pytest.raises(ModelError):
        parse_lock(text, "models.lock")
    assert parse_setting(f"a.b={text[4:]}")[1] == text[4:].strip()


def test_reasonable_toml_is_read_as_ever() -> None:
    rates = {"a": {"b.c": [n / 8 for n in range(500)]}, "text": "...".join("words" * 100), "d": {"e": {"f": "'\"#"}}}
    assert parse_toml(tomli_w.dumps(rates)) == rates
    assert parse_toml("a = [" + ", ".join(map(str, rates["a"]["b.c"])) + "]") == {"a": rates["a"]["b.c"]}


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(string.printable, max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
SECTIONS = st.sampled_from(
    ["target", "probing", "exemplars", "concepts", "images", "labels", "captioner", "method", "device", "seed", "x"]
)
KEYS = st.sampled_from(["name", "layers", "units", "set", "sets", "k", "n", "backend", "batch_size", "pooling", "y"])


@QUICK
@given(tables=st.dictionaries(SECTIONS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES, max_size=3)), max_size=4))
def test_any_tables_are_a_run_or_an_error(tables: dict[str, Any]) -> None:
    base: dict[str, Any] = {
        "target": {"name": "Net", "layers": ["units"]},
        "probing": {"set": "photos"},
        **{kind: {"backend": "toy"} for kind in ("captioner", "summarizer", "generator", "scorer")},
    }
    harmless(lambda: build_run({**base, "device": "cpu", **tables}, toys.registry(), live_target=True))


@QUICK
@given(data=CSV)
def test_any_bytes_are_a_label_table_or_an_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(data)
    harmless(read_labels, file)


@QUICK
@given(data=CSV)
@example(data=b"\n\xc2")
def test_any_bytes_are_truth_or_an_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "truth.csv"
    file.write_bytes(data)
    harmless(read_truth, file)


# --- answers of language models ----------------------------------------------------------------------

ANSWERS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="aAzZ \n,.;\"'`-_0\u00df\u0130\u02b0\ufb01\u3000\u2028", max_size=40),
    st.lists(
        st.sampled_from(["a", "the", "Dog", "red-brown", "dogs,", "is", "water.", "\u0130ce", "2"]), max_size=7
    ).map(" ".join),
)


@QUICK
@given(answer=ANSWERS)
@example(answer="A A 0")
def test_an_answer_is_a_plain_concept_or_refused(answer: str) -> None:
    try:
        concept = answers.parse_concept(answer)
    except answers.BadAnswer:
        return
    assert 1 <= len(concept.split(" ")) <= answers.MAX_WORDS
    assert len(concept) <= 80
    assert concept == concept.lower().strip()
    kinds = {letter: unicodedata.category(letter) for letter in concept.replace(" ", "")}
    assert all(kind[0] in "LMN" or letter in "-'\u2019.&+\u200c\u200d" for letter, kind in kinds.items())
    assert answers.parse_concept(concept) == concept


@QUICK
@given(answer=ANSWERS, caption=ANSWERS)
def test_a_simplified_caption_adds_nothing_or_is_refused(answer: str, caption: str) -> None:
    try:
        simple = answers.parse_simplified(answer, caption)
    except answers.BadAnswer:
        return
    assert simple
    assert len(simple.splitlines()) == 1
    assert len(simple) <= len(caption.strip()) + 8
