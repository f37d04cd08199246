"""A run folder that somebody else may have written: it is read as dnd writes it, or said to be damaged."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path

import pytest
from finished import finish
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dnd.results.run
from dnd.api import Grade, Unit
from dnd.errors import DamagedError, DndError, StoreError, UsageError
from dnd.results.export import FORMATS, as_text, export
from dnd.results.run import RunFolder

HEAD = "layer,unit,status,label,score,label_2,score_2,label_3,score_3,reason\n"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(finish(tmp_path / "run", {"fc/0": ["lake", "sea"], "fc/1": [], "fc/2": ["!it broke"]}))


def test_both_tables_say_the_same(run: RunFolder) -> None:
    records = list(run.records())
    assert [record.unit for record in records] == run.recorded() == [label.unit for label in run.labels]
    assert [record.label for record in records] == run.labels
    assert run.record(Unit("fc", 0)) == records[0]
    assert run.record(Unit("fc", 9)) is None
    assert (records[0].concept, records[1].concept, records[0].best) == ("lake", "", records[0].candidates[0])


def test_a_unit_of_one_table_only_is_said(run: RunFolder) -> None:
    file = run.folder / "labels.jsonl"
    file.write_text("\n" + file.read_text().splitlines()[0] + "\n\n")
    assert run["fc/0"].concept == "lake"
    with pytest.raises(StoreError, match=r"labels\.jsonl: fc/1 is missing"):
        run["fc/1"]


def test_what_was_considered_is_no_label(run: RunFolder) -> None:
    file = run.folder / "labels.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    file.write_text(json.dumps({**first, "status": "uninterpretable"}) + "\n")
    (record,) = RunFolder(run.folder).records()
    assert (record.concept, [concept for concept, _ in record.label.labels]) == ("", ["lake", "sea"])
    file.write_text(json.dumps({**first, "labels": []}) + "\n")
    with pytest.raises(StoreError, match="a labelled unit without a label"):
        list(RunFolder(run.folder).records())


def test_the_auc_is_read_under_its_earlier_name(run: RunFolder) -> None:
    file = run.folder / "labels.jsonl"
    before = list(run.records())
    assert [one.auc for one in before[0].candidates] == [0.8, 0.8]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["candidates"] = [
        {"drive" if key == "auc" else key: at for key, at in one.items()} for one in lines[0]["candidates"]
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert '"auc"' not in file.read_text()
    assert list(RunFolder(run.folder).records()) == before


def test_the_groups_of_earlier_versions_are_passed_over(run: RunFolder) -> None:
    file = run.folder / "labels.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["exemplars"] = [{**one, "group": 0} for one in lines[0]["exemplars"]]
    lines[0]["candidates"] = [{**one, "groups": [0, 1]} for one in lines[0]["candidates"]]
    lines[0]["unanswered"] = [{"group": 1, "reason": "concepts: no"}]
    before = list(run.records())
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(RunFolder(run.folder).records()) == before


def test_a_folder_that_goes_while_it_is_open_is_said(run: RunFolder) -> None:
    assert run["fc/0"].concept == "lake"
    (run.folder / "labels.jsonl").unlink()
    with pytest.raises(StoreError, match=r"cannot read .*labels\.jsonl: No such file"):
        run["fc/0"]


@pytest.mark.parametrize(
    "row",
    [
        "fc,0",
        "fc",
        "fc,0,failed,,,,,,,no,more",
        "fc,0,labelled,,,,,,,",
        "fc,0,failed,lake,0.9,,,,,",
        "fc,0,labelled,lake,,,,,,",
        "fc,0,labelled,lake,high,,,,,",
        "fc,-1,failed,,,,,,,no",
        "fc,²,failed,,,,,,,no",
        "fc," + "9" * 5000 + ",failed,,,,,,,no",
        "fc,0,<script>,,,,,,,",
        "fc,0,failed,,,,,,," + "x" * 200_000,
        "fc,0,failed,,,,,,,\udcff",
    ],
)
def test_a_damaged_table_is_named(run: RunFolder, row: str) -> None:
    (run.folder / "labels.csv").write_text(HEAD + row + "\n", "utf-8", errors="surrogateescape")
    with pytest.raises(StoreError, match=r"cannot read .*labels\.csv") as caught:
        _ = run.labels
    assert caught.value.hint
    with pytest.raises(StoreError):
        as_text(run, "csv")


def test_a_table_without_a_column_is_named(run: RunFolder) -> None:
    (run.folder / "labels.csv").write_text("layer,unit,label\nfc,0,x\n")
    with pytest.raises(StoreError, match=r"labels\.csv"):
        _ = run.labels


def test_what_a_damaged_line_says_is_not_exported(run: RunFolder, tmp_path: Path) -> None:
    """Were labels.jsonl a link to another file, its text would not go into what is handed on."""
    secret = tmp_path / "secret"
    secret.write_text("the key is 1234\n")
    (run.folder / "labels.jsonl").unlink()
    (run.folder / "labels.jsonl").symlink_to(secret)
    for kind in ("jsonl", "parquet"):
        with pytest.raises(StoreError) as caught:
            export(run, kind, tmp_path / "out")
        assert "1234" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_a_line_without_end_is_not_read_whole(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnd.results.run, "_LONGEST", 1000)
    (run.folder / "labels.jsonl").write_text(" " * 500 + "x" * 100_000)
    with pytest.raises(StoreError, match="line 1 of"):
        run.recorded()


def test_csv_is_copied_to_the_byte(run: RunFolder, tmp_path: Path) -> None:
    """Formulas too: others script against the labels as they are (docs/results.md)."""
    with (run.folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([HEAD.strip().split(","), ["fc", 0, "labelled", '=HYPERLINK("x")\r\n+1', 0.5, *[""] * 5]])
    export(run, "csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes() == (run.folder / "labels.csv").read_bytes()
    assert RunFolder(run.folder).labels[0].labels[0][0] == '=HYPERLINK("x")\r\n+1'


@pytest.mark.parametrize("truth", [3, [], {"grades": 3}, {"grades": [{"kind": 1}]}, {"x": 1}, {"grades": [{}]}])
def test_a_truth_that_is_none_is_named(run: RunFolder, truth: object) -> None:
    (run.folder / "run.json").write_text(json.dumps({"truth": truth}))
    with pytest.raises(StoreError, match=r"run\.json: truth"):
        _ = run.grading


def test_grading_reads_back(run: RunFolder) -> None:
    assert run.grading is None
    (run.folder / "run.json").write_text('{"truth": {"grades": [{"kind": "single", "right": 2, "total": 3}]}}')
    again = RunFolder(run.folder).grading
    assert again
    assert again.grades == (Grade("single", 2, 3),)


@pytest.mark.parametrize("text", ["[1]", "3", "{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_facts_that_are_no_table_are_named(run: RunFolder, text: str) -> None:
    (run.folder / "run.json").write_text(text)
    with pytest.raises(StoreError, match=r"run\.json"):
        _ = run.facts


# --- images ------------------------------------------------------------------------------------------


def test_what_lies_in_an_images_place_is_not_read_as_one(run: RunFolder, tmp_path: Path) -> None:
    """A store from elsewhere whose images are links to the reader's own files, or other images."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"the key is 1234")
    shown = run["fc/0"].exemplars[0]
    other = run.store.image_path(run["fc/0"].exemplars[1].digest)
    for planted in (secret, other):
        path = run.store.image_path(shown.digest)
        path.unlink(missing_ok=True)
        path.symlink_to(planted)
        with pytest.raises(UsageError, match="not all in its store"):
            export(run, "parquet", tmp_path / "out")
        path.unlink(missing_ok=True)
        path.symlink_to(planted)
        with pytest.raises(UsageError, match="cannot read an image") as caught:
            run["fc/0"].image(shown)
        assert isinstance(caught.value.__cause__, DamagedError)
    assert secret.read_bytes() == b"the key is 1234"


# --- anything at all ---------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just("ab" * 32)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
PARTS = ["layer", "unit", "status", "labels", "reason", "exemplars", "candidates", "sample", "dropped"]
INNER = ["concept", "score", "image", "activation", "source", "box", "boxes", "map", "view", "images", "caption"]
NEAR = st.one_of(JSON, st.lists(st.dictionaries(st.sampled_from(INNER), JSON, max_size=6), max_size=2))
ROWS = st.one_of(st.text(alphabet=',"\n\r01-.=labefidnsu\x00é', max_size=60), st.text(max_size=20))


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    change=st.dictionaries(st.sampled_from(PARTS), NEAR, max_size=3), drop=st.sets(st.sampled_from(PARTS), max_size=1)
)
def test_any_record_is_exported_or_said_to_be_damaged(
    run: RunFolder, tmp_path: Path, change: dict[str, object], drop: set[str]
) -> None:
    file = run.folder / "labels.jsonl"
    whole = file.read_text()
    record = {**json.loads(whole.splitlines()[0]), **change}
    try:
        file.write_text(json.dumps({key: value for key, value in record.items() if key not in drop}) + "\n")
        again = RunFolder(run.folder)
        try:
            for card in again:
                assert card._repr_html_().startswith("<div")
            export(again, "parquet", tmp_path / "x.parquet", images=False)
        except DndError:
            return
    finally:
        file.write_text(whole)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=ROWS)
def test_any_table_is_exported_or_said_to_be_damaged(run: RunFolder, text: str) -> None:
    (run.folder / "labels.csv").write_bytes((HEAD + text).encode("utf-8", "replace"))
    again = RunFolder(run.folder)
    try:
        assert len(again.labels) >= 0
    except DndError:
        return
    again._repr_html_()
    for kind in FORMATS:
        if kind not in ("jsonl", "parquet", "hf"):
            with suppress(UsageError):  # the reference's table knows no layers
                "".join(as_text(again, kind))
