"""A run in Python and in a notebook: what is shown is what is there, and nothing that a model said runs."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys

import needs
import pytest
from finished import EXEMPLARS, finish
from PIL import Image

import dnd
from dnd.api import Unit
from dnd.errors import UsageError
from dnd.results.verdict import Verdict

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def run(tmp_path):
    labels = {"fc/0": ["lake", "sea"], "fc/7": [], "fc/9": ["null"]}
    return dnd.open_run(finish(tmp_path / "run", labels, caption="a lake"))


def test_a_unit_by_any_of_its_names(run):
    for key in (7, "fc/7", ("fc", 7), Unit("fc", 7)):
        assert run[key].label.unit == Unit("fc", 7)
    assert run.unit(0).concept == "lake"
    assert [card.label for card in run] == [run[label.unit].label for label in run.labels]
    assert len(run) == 3
    assert run.exit_code == 0


@pytest.mark.parametrize("key", [1, "fc/1", "conv/0", "fc", None])
def test_a_unit_that_is_not_there(run, key):
    with pytest.raises(UsageError, match="has no unit"):
        run[key]


def test_a_number_is_not_enough_for_several_layers(tmp_path):
    run = dnd.open_run(finish(tmp_path / "run", {"a/0": ["lake"], "b/0": ["sea"]}))
    with pytest.raises(UsageError, match="its layers are a, b"):
        run[0]
    assert run["b", 0].concept == "sea"


def test_a_run_says_which_it_is(run):
    assert repr(run) == f"<the run in {run.folder}>"


def test_reprs_are_short(run):
    unit = run["fc/0"]
    assert [repr(one) for one in (unit, unit.exemplars[1], unit.candidates[0], unit.candidates[0].images[1])] == [
        "<fc/0: lake>",
        "<exemplar photo.png (crop): activation 2>",
        "<candidate 'lake': score 0.9, 2 images>",
        f"<image {unit.candidates[0].images[1].digest[:8]}: activation 0.5>",
    ]


def test_images_are_large_enough_to_see(run):
    unit = run["fc/0"]
    assert [image.size for image in unit.images()] == [(224, 134)] * EXEMPLARS
    assert [image.size for image in unit.images(least=0)] == [(20, 12)] * EXEMPLARS
    assert [image.getpixel((0, 0)) for image in unit.images("sea")] == [(200, 0, 0), (200, 9, 0)]
    with pytest.raises(UsageError, match="no candidate 'lakes'") as caught:
        unit.images("lakes")
    assert "Did you mean 'lake'" in caught.value.hint
    assert caught.value.__notes__ == [f"Hint: {caught.value.hint}"], "a traceback shows it"


def test_a_table_has_pictures_and_pages(tmp_path):
    run = dnd.open_run(finish(tmp_path / "run", {f"fc/{n}": ["lake"] for n in range(203)}))
    html = run._repr_html_()
    assert html.count("<img ") == 200
    assert html.count("<details>") == 3
    assert "<summary>fc/50 to fc/99</summary>" in html
    assert "and 3 more" in html


def test_evidence_reads_back(run):
    card = run["fc/0"]
    assert [one.activation for one in card.exemplars] == [3.0, 2.0, 1.0]
    assert card.exemplars[1].box == (0, 0, 0.5, 1)
    assert [(c.concept, c.auc) for c in card.candidates] == [("lake", 0.8), ("sea", 0.8)]
    assert card.image(card.exemplars[1]).getpixel((0, 0)) == (0, 9, 200)


def test_a_card_shows_label_alternatives_and_exemplars(run):
    html = run["fc/0"]._repr_html_()
    assert "<b>lake</b> <span>score 0.90</span>" in html
    assert "also: sea 0.80" in html
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(pictures) == EXEMPLARS + 2
    assert "images of lake" in html
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as image:
        assert image.size == (20, 12)
        assert all(abs(a - b) < 9 for a, b in zip(image.getpixel((5, 5)), (0, 0, 200), strict=True))
    assert html.count("width:96px;height:96px;object-fit:contain") == EXEMPLARS + 2, "a small crop would be a dot"
    words = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert words == ["a lake · 3", "a lake · 2", "a lake · 1", "0.5", "0.25"]
    assert "uninterpretable" in run[7]._repr_html_()
    assert "nothing fits" in run[7]._repr_html_()


def test_nothing_that_a_model_or_a_file_name_says_runs(tmp_path):
    folder = finish(tmp_path / "run", {f"{SCRIPT}/0": [SCRIPT, SCRIPT]}, caption=f'"{SCRIPT}', source=f'"{SCRIPT}')
    run = dnd.open_run(folder)
    for html in (run[0]._repr_html_(), run._repr_html_()):
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert '""' not in html


def test_verdicts_are_in_cards_tables_and_the_data_frame(tmp_path):
    verdict = Verdict(word="too narrow", concept="lake", because=SCRIPT, auc=0.98765, correlation=0.25)
    run = dnd.open_run(finish(tmp_path / "run", {"fc/0": ["lake"], "fc/1": []}, verdicts={"fc/0": verdict}))
    assert run.verdicts[Unit("fc", 0)].auc == 0.9877
    assert "too narrow (&lt;script&gt;alert(1)&lt;/script&gt;), AUC 0.99 on new images" in run[0]._repr_html_()
    assert "too narrow" in run._repr_html_()
    assert "verdict" not in run[1]._repr_html_()


@needs.pandas
def test_a_data_frame_has_the_verdicts_figures(tmp_path):
    verdict = Verdict(word="verified", concept="lake", auc=0.98765)
    run = dnd.open_run(finish(tmp_path / "run", {"fc/0": ["lake"], "fc/1": []}, verdicts={"fc/0": verdict}))
    frame = run.to_pandas()
    assert (frame.verdict[0], frame.verdict_auc[0]) == ("verified", 0.9877)
    assert frame.verdict.isna().tolist() == frame.verdict_auc.isna().tolist() == [False, True]
    assert frame.verdict_correlation.isna().all()


def test_a_card_without_its_images_says_so(run):
    for path in run.store.folder.glob("images/*/*.png"):
        path.unlink()
    html = run[0]._repr_html_()
    assert html.count("the image is gone") == EXEMPLARS + 2
    with pytest.raises(UsageError, match="cannot read"):
        run[0].image(run[0].exemplars[0])


@needs.pandas
def test_pandas_keeps_words_that_look_like_nothing(run):
    frame = run.to_pandas()
    assert frame.label.tolist()[::2] == ["lake", "null"]
    assert frame.label.isna().tolist() == [False, True, False]
    assert frame.score[0] == pytest.approx(0.9)
    assert frame.auc.isna().tolist() == [False, True, False]
    assert frame.auc[0] == pytest.approx(0.8)
    assert frame.confidence.isna().all()
    assert [run[number].label.unit for number in frame.unit.to_numpy()] == [label.unit for label in run.labels]


def test_a_result_is_the_run_that_its_folder_holds(run):
    again = dnd.open_run(run.folder)
    assert again[0] == run[0]
    assert again.labels == run.labels


def test_opening_a_run_imports_nothing_heavy(run):
    code = (
        "import sys, dnd; run = dnd.open_run(sys.argv[1]); run.labels; run[0]; "
        "print(sorted({'torch', 'pandas', 'pyarrow', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
