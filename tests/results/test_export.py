"""`dnd export`: what was written reads back as what the run says."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
from pathlib import Path

import needs
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from finished import EXEMPLARS, finish
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dnd.cli.main import cli
from dnd.errors import StoreError, UsageError
from dnd.evaluation.tables import read_labels
from dnd.results.export import FORMATS, as_text, export, parquet
from dnd.results.export.latex import escape_latex
from dnd.results.run import RunFolder
from dnd.results.verdict import Verdict
from dnd.text import spreadsheet_lines, without_guard

NASTY = "50% <b>|_x_|</b> & $1 \\ {y} ~"


@pytest.fixture
def run(tmp_path):
    labels = {"fc/0": ["lake", "sea, calm"], "fc/1": [], "fc/2": [NASTY, "null"], "fc/3": ["!it broke"]}
    return RunFolder(finish(tmp_path / "run", labels))


def test_the_command_offers_every_format():
    from dnd.cli import export as command

    assert set(command.FORMATS) == set(FORMATS)


def test_hf_is_a_folder_that_datasets_opens(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("dnd.results.export.dataset._UNITS", 3)
    labels = {f"fc/{n}": [f"lake {n}"] for n in range(6)} | {"fc/6": [], "fc/7": ["<b>|x"]}
    run = RunFolder(finish(tmp_path / "run", labels, verdicts={"fc/0": Verdict(word="verified", concept="lake 0")}))
    (run.folder / "run.toml").write_text(
        'seed = 3\n[target]\nname = "mine:net"\n[probing]\nsets = ["/home/me/private/photos"]\n'
        '[captioner]\nbackend = "blip2"\nmodel = "microworld-blip2"\n[method]\nname = "dnd"\n'
    )
    facts = {"models": {"microworld-blip2": "0" * 64, "lost": "1" * 64}, "probing": {"images": 1234}}
    (run.folder / "run.json").write_text(json.dumps(facts))
    run = RunFolder(run.folder)
    export(run, "hf", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "data").iterdir()) == [
        f"labels-0000{n}-of-00003.parquet" for n in range(3)
    ]
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
    read = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert read["label"] == [*(f"lake {n}" for n in range(6)), None, "<b>|x"]
    assert read[0]["exemplars"][0].size == (20, 12)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nconfigs:\n- config_name: default\n  data_files: data/*.parquet\n")
    for said in (
        "# Labels of the units of mine:net",
        "| labelled | 7 |",
        "| verified | 1 |",
        "| probing images | 1,234 of photos |",
        r"| captioner | blip2 · microworld-blip2 |",
        "| seed | 3 |",
        "| lost | not in models.lock here | ? |",
    ):
        assert said in card
    assert re.search(r"\| microworld-blip2 \| package:\S+ \| Apache-2\.0 \|", card)
    assert "/home" not in card
    with pytest.raises(UsageError, match="exists already"):
        export(run, "hf", tmp_path / "out")
    export(run, "hf", tmp_path / "bare", images=False)
    assert "exemplars" not in pq.read_table(tmp_path / "bare" / "data" / "labels-00000-of-00003.parquet").column_names


def test_neuronpedia_has_a_feature_a_line(tmp_path):
    run = RunFolder(finish(tmp_path / "run", {"fc/4": ["lake", "sea"], "fc/5": []}))
    (run.folder / "run.toml").write_text('[target]\nname = "mine"\nmodel = "net-1"\n[summarizer]\nbackend = "llama"\n')
    first, second = map(json.loads, as_text(RunFolder(run.folder), "neuronpedia"))
    assert (first["modelId"], first["layer"], first["index"], first["maxActApprox"]) == ("net-1", "fc", "4", 3.0)
    assert first["explanations"][0] == {
        **{"modelId": "net-1", "layer": "fc", "index": "4", "description": "lake"},
        **{"typeName": "describe-and-dissect", "explanationModelName": "llama"},
        "scores": [
            {"explanationScoreTypeName": "auc", "value": 0.8},
            {"explanationScoreTypeName": "dnd", "value": 0.9},
        ],
    }
    assert [one["description"] for one in first["explanations"]] == ["lake", "sea"]
    assert second["explanations"] == []


def test_csv_and_jsonl_are_the_run_folders_own(run, tmp_path):
    for kind in ("csv", "jsonl"):
        export(run, kind, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == (run.folder / f"labels.{kind}").read_bytes()


def test_a_verified_run_has_its_verdicts_in_every_table(tmp_path):
    verdict = Verdict(word="too narrow", concept="lake", because="water", auc=0.98765)
    run = RunFolder(finish(tmp_path / "run", {"fc/0": ["lake"], "fc/1": []}, verdicts={"fc/0": verdict}))
    assert "".join(as_text(run, "csv")).splitlines() == [
        "layer,unit,status,label,score,label_2,score_2,label_3,score_3,reason,verdict",
        "fc,0,labelled,lake,0.9000,,,,,,too narrow",
        "fc,1,uninterpretable,,,,,,,nothing fits,",
    ]
    lines = [json.loads(line) for line in "".join(as_text(run, "jsonl")).splitlines()]
    assert (lines[0]["verdict"]["because"], lines[0]["verdict"]["auc"]) == ("water", 0.9877)
    assert "verdict" not in lines[1]
    assert "".join(as_text(run, "markdown")).splitlines()[::2] == [
        "| unit | label | score | also | verdict |",
        "| fc/0 | lake | 0.90 |  | too narrow |",
    ]
    assert "too narrow \\\\" in "".join(as_text(run, "latex"))
    export(run, "parquet", tmp_path / "x.parquet", images=False)
    assert pq.read_table(tmp_path / "x.parquet").column("verdict").to_pylist() == ["too narrow", None]
    assert [label.label for label in run.labels] == ["lake", ""]


def test_a_label_of_several_lines_stays_as_it_is_in_csv_and_on_one_line_in_markdown(tmp_path):
    run = RunFolder(finish(tmp_path / "run", {"fc/0": ["a\r\nlake\rb"]}))
    export(run, "csv", tmp_path / "out")
    assert b"a\r\nlake\rb" in (tmp_path / "out").read_bytes()
    assert "".join(as_text(run, "markdown")).splitlines()[2:] == ["| fc/0 | a lake b | 0.90 |  |"]


def test_the_references_table_is_what_eval_reads(run, tmp_path):
    file = tmp_path / "deep" / "table.csv"
    export(run, "reference", file)
    with file.open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows[0] == ["Neuron ID", "Label 1", "Label 2", "Label 3"]
    assert rows[1] == ["0", "lake", "sea, calm", ""]
    read = read_labels(file)
    assert [row.unit.index for row in read] == [0, 1, 2, 3]
    assert [row.labels for row in read] == [("lake", "sea, calm"), (), (NASTY, "null"), ()]


def test_the_references_table_refuses_several_layers(tmp_path):
    run = RunFolder(finish(tmp_path / "run", {"a/0": ["lake"], "b/0": ["sea"]}))
    with pytest.raises(UsageError, match="knows no layers"):
        "".join(as_text(run, "reference"))


def test_markdown_escapes_what_a_model_said(run):
    lines = "".join(as_text(run, "markdown")).splitlines()
    assert len(lines) == 2 + len(run)
    assert lines[2] == "| fc/0 | lake | 0.90 | sea, calm |"
    assert lines[3] == r"| fc/1 | \(uninterpretable\) |  | nothing fits |"
    assert r"50% &lt;b&gt;\|\_x\_\|&lt;/b&gt; &amp; \$1 \\ \{y\} \~" in lines[4]


def test_markdown_makes_no_links_of_addresses(tmp_path):
    """GitHub's reader makes links of bare addresses: a label may not lead anywhere."""
    run = RunFolder(finish(tmp_path / "run", {"fc/0": ["http://a.b/c", "WWW.a.b"]}))
    assert "".join(as_text(run, "markdown")).splitlines()[2] == r"| fc/0 | http\://a.b/c | 0.90 | WWW\.a.b |"


ODD_FACTS = [{"probing": 5}, {"probing": {"images": "x"}}, {"models": 5}, {"models": ["a", 5]}, {"versions": []}]
ODD_SETTINGS = ["target = 5", "probing = 5", "[probing]\nsets = 5", "method = 5", "summarizer = []"]


@pytest.mark.parametrize("odd", [*ODD_FACTS, *ODD_SETTINGS], ids=str)
@pytest.mark.parametrize("kind", ["hf", "neuronpedia"])
def test_a_run_folder_that_was_handed_over_may_hold_anything(tmp_path, odd, kind):
    folder = finish(tmp_path / "run", {"fc/0": ["lake"]})
    (folder / "run.toml").write_text(odd if isinstance(odd, str) else "")
    (folder / "run.json").write_text("{}" if isinstance(odd, str) else json.dumps(odd))
    export(RunFolder(folder), kind, tmp_path / "out", images=False)
    text = (tmp_path / "out" / "README.md" if kind == "hf" else tmp_path / "out").read_text()
    assert ("# Labels" if kind == "hf" else '"lake"') in text


FORMULAS = ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\uff1d1"]


def test_for_spreadsheets_no_cell_is_a_formula(tmp_path):
    layer = "=HYPERLINK(1)"
    run = RunFolder(
        finish(tmp_path / "run", {f"{layer}/{n}": [text] for n, text in enumerate([*FORMULAS, "-5", "a=b"])})
    )
    export(run, "csv", tmp_path / "out.csv", for_spreadsheets=True)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["label"] for row in rows] == [*(f"'{text}" for text in FORMULAS), "-5", "a=b"]
    assert {row["layer"] for row in rows} == {f"'{layer}"}
    assert {(row["unit"], row["score"]) for row in rows} == {(str(n), "0.9000") for n in range(len(rows))}
    export(run, "csv", tmp_path / "plain.csv")
    assert [label.labels[0][0] for label in RunFolder(run.folder).labels][:2] == FORMULAS[:2]
    assert b"'" not in (tmp_path / "plain.csv").read_bytes()


@given(st.lists(st.text() | st.text("='+-@ \t\n5e"), min_size=1))
def test_the_guard_comes_off_again(texts):
    (cells,) = csv.reader(io.StringIO("".join(spreadsheet_lines([texts])), newline=""))
    assert not [cell for cell in cells if cell.lstrip().startswith(tuple("=+-@")) and not is_number(cell)]
    assert [without_guard(cell) for cell in cells] == texts


def is_number(text):
    try:
        return bool(float(text)) or True
    except ValueError:
        return False


def test_every_table_is_read_without_the_guard(tmp_path):
    texts = [*(text.strip() for text in FORMULAS), "-5", "'=1", "''tis", "'tis", "'"]
    lines = spreadsheet_lines([("unit", "label"), *enumerate(texts)])
    (tmp_path / "t.csv").write_text("".join(lines), encoding="utf-8")
    assert [row.labels[0] for row in read_labels(tmp_path / "t.csv")] == texts


CONTROL = [
    0,
    1,
    7,
    8,
    0x0B,
    0x1B,
    0x7F,
    0x85,
    0x9B,
    0x61C,
    0x200E,
    0x200F,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]


def test_control_characters_are_codes_in_jsonl_and_stand_in_no_markdown(tmp_path):
    said = [f"a{chr(code)}b" for code in CONTROL]
    run = RunFolder(finish(tmp_path / "run", {f"fc/{n}": [text] for n, text in enumerate(said)}, caption="x\u202ey"))
    old = run.folder / "labels.jsonl"
    assert old.read_text().isascii()
    old.write_text("".join(json.dumps(json.loads(line), ensure_ascii=False) + "\n" for line in old.open()), "utf-8")
    lines = "".join(as_text(RunFolder(run.folder), "jsonl")).splitlines()
    assert all(line.isascii() for line in lines), "of a run folder of an earlier version as well"
    assert [json.loads(line)["labels"][0]["concept"] for line in lines] == said
    assert json.loads(lines[0])["exemplars"][0]["caption"] == "x\u202ey"
    table = "".join(as_text(run, "markdown"))
    assert not {chr(code) for code in CONTROL} & set(table)
    assert len(table.splitlines()) == 2 + len(said)


def test_latex_escapes_what_a_model_said(run):
    text = "".join(as_text(run, "latex"))
    assert r"50\% \textless{}b\textgreater{}\textbar{}\_x\_\textbar{}" in text
    assert r"\& \$1 \textbackslash{} \{y\} \textasciitilde{}" in text
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 1
    rows = [line for line in text.splitlines() if line.startswith("fc/")]
    assert len(rows) == 4
    assert all(row.replace(r"\&", "").count("&") == 3 and row.endswith(r" \\") for row in rows)


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("[2em] x", "{[}2em] x"),  # after the \\ of the row before it would be its argument
        ("*", "{*}"),
        ("a--b ,,c ''", "a-{}-b ,{},c '{}'"),
        ("``", r"\textasciigrave{}\textasciigrave{}"),
        ("café “Łódź”", "café “Łódź”"),
        ("cafe\u0301", "café"),
        ("猫\u200d", r"\dndsign{猫}{U+732B}\dndsign{" + "\u200d}{U+200D}"),
        ("a\x00b\x7f \u202ec", "aU+0000bU+007F U+202Ec"),
        ("uninterpretable", "uninterpretable"),
        ("x" * 30, r"xxxxxxxxxxxx\allowbreak{}xxxxxxxxxxxx\allowbreak{}xxxxxx"),
    ],
)
def test_latex_has_no_sign_that_stops_it(said, written):
    assert escape_latex(said) == written


def test_latex_columns_break_their_lines_where_they_are_long(tmp_path):
    short = "".join(as_text(RunFolder(finish(tmp_path / "short", {"fc/0": ["lake"]})), "latex"))
    assert r"\begin{longtable}{llrl}" in short
    long = "".join(as_text(RunFolder(finish(tmp_path / "long", {"fc/0": ["a lake in the mountains " * 9]})), "latex"))
    assert r"\begin{longtable}{l>{\raggedright\arraybackslash}p{0.26\linewidth}rl}" in long


@needs.pdflatex
def test_latex_compiles_whatever_a_model_said(tmp_path):
    signs = "".join(map(chr, range(1, 0x180))) + "\u2013\u2014\u201c\u201d\u2026\u20ac\u202e\u2212 猫 🐈"
    nasty = {"[1]*{x}&%/0": [signs, NASTY], "[1]*{x}&%/1": ["?` !` ``x''"], "[1]*{x}&%/2": ["!it broke: \\input{x}"]}
    long = {f"{'deep.' * 20}x/{n}": ["[0em]" + "no_break" * 30, "a long label " * 30] for n in range(3)}
    table = "".join(as_text(RunFolder(finish(tmp_path / "run", nasty | long)), "latex"))
    head = r"\documentclass{article}\usepackage{array,booktabs,longtable}\usepackage[T1]{fontenc}\begin{document}"
    (tmp_path / "x.tex").write_text(f"{head}\n{table}\\end{{document}}\n", "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")[-2000:]


def test_parquet_has_the_images_in_it(run, tmp_path):
    export(run, "parquet", tmp_path / "x.parquet")
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["label"] for row in rows] == ["lake", None, NASTY, None]
    assert [row["status"] for row in rows] == ["labelled", "uninterpretable", "labelled", "failed"]
    first = rows[0]
    assert (len(first["exemplars"]), len(first["synthetic"])) == (EXEMPLARS, 2)
    assert first["label_2"] == "sea, calm"
    assert first["score_2"] == pytest.approx(0.8)
    assert first["boxes"] == [[], [0, 0, 0.5, 1], [0, 0, 0.5, 1]]
    image = Image.open(io.BytesIO(first["exemplars"][1]["bytes"]))
    assert image.convert("RGB").getpixel((3, 3)) == (0, 9, 200)
    strongest = Image.open(io.BytesIO(first["synthetic"][0]["bytes"]))  # 0.5, the second drawn
    assert strongest.convert("RGB").getpixel((0, 0)) == (200, 9, 0)


def test_parquet_gives_no_label_that_the_run_does_not_give(run, tmp_path):
    file = run.folder / "labels.jsonl"
    first, *rest = map(json.loads, file.read_text().splitlines())
    first |= {"status": "uninterpretable", "exemplars": [{**one, "caption": None} for one in first["exemplars"]]}
    file.write_text("".join(json.dumps(line) + "\n" for line in (first, *rest)))
    export(RunFolder(run.folder), "parquet", tmp_path / "deep" / "x.parquet")
    row = pq.read_table(tmp_path / "deep" / "x.parquet").to_pylist()[0]
    assert (row["status"], row["label"], row["score"], row["label_2"]) == ("uninterpretable", None, None, None)
    assert row["captions"] == [""] * EXEMPLARS
    assert row["candidates"] == ["lake", "sea, calm"]


def test_a_parquet_file_that_cannot_be_written_is_said(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot write .*x\.parquet"):
        export(run, "parquet", tmp_path / "file" / "x.parquet")


def test_an_image_in_the_place_of_another_is_not_exported(run, tmp_path):
    one, another, *_ = run.store.folder.glob("images/*/*.png")
    one.write_bytes(another.read_bytes())
    with pytest.raises(UsageError, match="not all in its store"):
        export(run, "parquet", tmp_path / "x.parquet")


@needs.datasets
def test_datasets_decodes_the_images(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    export(run, "parquet", tmp_path / "x.parquet")
    found = datasets.Dataset.from_parquet(str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found[0]["exemplars"][2].getpixel((3, 3)) == (0, 18, 200)
    assert found[2]["label"] == NASTY
    assert found.features["unit"].dtype == "int32"


@needs.pandas
def test_pandas_opens_it(run, tmp_path):
    import pandas

    export(run, "parquet", tmp_path / "x.parquet")
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    assert frame.label[0] == "lake"
    assert frame.exemplars[0][0]["bytes"].startswith(b"\x89PNG")


def test_parquet_is_written_in_row_groups(tmp_path):
    labels = {f"fc/{n}": ["lake"] for n in range(parquet._ROWS * 2 + 1)}
    run = RunFolder(finish(tmp_path / "run", labels))
    export(run, "parquet", tmp_path / "x.parquet")
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 3


def test_images_that_are_gone_are_said_and_nothing_is_written(run, tmp_path):
    next(run.store.folder.glob("images/*/*.png")).unlink()
    with pytest.raises(UsageError, match="not all in its store") as caught:
        export(run, "parquet", tmp_path / "x.parquet")
    assert "DND_STORE" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir() if "parquet" in path.name] == []
    export(run, "parquet", tmp_path / "x.parquet", images=False)
    assert "exemplars" not in pq.read_schema(tmp_path / "x.parquet").names


def test_the_command(run, tmp_path):
    shown = CliRunner().invoke(cli, ["export", str(run.folder), "--format", "reference"])
    assert shown.output.splitlines()[1] == '0,lake,"sea, calm",'
    out = tmp_path / "labels.jsonl"
    CliRunner().invoke(cli, ["export", str(run.folder), "--format", "jsonl", "--out", str(out)], catch_exceptions=False)
    assert json.loads(out.read_text().splitlines()[0])["unit"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "nowhere"], "there is no run folder nowhere"),
        (["export", "."], "is not the folder of a run: it has no labels.csv"),
        (["export", "RUN", "--format", "parquet"], "parquet is no text"),
        (
            ["export", "RUN", "--format", "markdown", "--for-spreadsheets"],
            "--for-spreadsheets is for csv, not for markdown",
        ),
    ],
)
def test_mistakes_are_said(run, arguments, words, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    found = CliRunner().invoke(cli, [str(run.folder) if one == "RUN" else one for one in arguments])
    assert isinstance(found.exception, UsageError)
    assert words in str(found.exception)


def test_a_damaged_line_is_named(run):
    file = run.folder / "labels.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    with pytest.raises(StoreError, match=r"line 2 of .*labels\.jsonl is damaged"):
        list(RunFolder(run.folder).records())


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_that_is_no_text_is_named(run, kind):
    file = run.folder / f"labels.{kind}"
    file.write_bytes(file.read_bytes().replace(b"lake", b"\xff\xfe"))
    with pytest.raises(StoreError, match=rf"(cannot read|line 1 of) .*labels\.{kind}"):
        as_text(run, kind)


def test_an_unfinished_run_is_said(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("")
    with pytest.raises(UsageError, match="not finished"):
        RunFolder(Path(tmp_path / "run"))
