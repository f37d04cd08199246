"""The report in a real browser, used as a reader would: with a mouse, with keys, on a phone, with a screen reader."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import needs
import pytest
import reports
from click.testing import CliRunner
from corpus import NAMES, run_corpus

from dnd.api import Unit
from dnd.api.truth import read_truth
from dnd.cli.main import cli
from dnd.errors import UsageError
from dnd.results.report.build import build_report
from dnd.results.report.single import build_single
from dnd.results.run import RunFolder
from dnd.store.images import Store

try:
    from playwright import sync_api
    from playwright.sync_api import expect
except ImportError:  # then all are skipped
    pass
CHROMIUM = needs.find_chromium()
pytestmark = needs.browser

N = 300
DESK, PHONE = {"width": 1200, "height": 800}, {"width": 390, "height": 780}
Open = Callable[..., Any]
OTHER = 'seed = 1\n\n[target]\nname = "toy"\nlayers = ["a", "b"]\n\n[method]\nname = "clip-dissect"\ntop = 5\n'
FIGURES = {
    name: {
        "higher_is_better": True,
        "own": {"value": value, "low": value - 0.1, "high": value + 0.1},
        "controls": {"shuffled": {"value": 0.1}, "constant": {"value": 0.2}},
    }
    for name, value in (("text.cosine", 0.75), ("images.mad", 3.5))
}


HUGE = (1e38, 3.4028235e38, 1.7e308, 1e-320)


def huge(store: Store, index: int, scale: float) -> dict[str, Any]:
    """A unit whose activations are finite and as large, or as small, as floats are: from -1 to 1 times the scale."""
    found = reports.unit(store, "a", index, "red")
    for place, exemplar in enumerate(found["exemplars"]):
        exemplar["activation"] = scale * (1 - place / 3)
    for candidate in found["candidates"]:
        for image, share in zip(candidate["images"], (-1.0, 0.0, 0.5), strict=True):
            image["activation"] = scale * share
    sample = {"n": 64, "low": -scale, "high": scale, "median": 0.0, "p95": scale / 2, "counts": [40, 0, 0, 24]}
    return {**found, "sample": sample}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports: `large` of N units, `small` of six, `hostile`, and `both` of two runs."""
    folder = tmp_path_factory.mktemp("reports")
    store = Store(folder / ".dnd-store")
    one = reports.unit(store, "a", 0, "red")
    large = [{**one, "unit": index, "layer": "ab"[index % 2]} for index in range(N)]
    large[7] |= {"labels": [{"concept": "needle", "score": 0.123}]}
    again = one["candidates"][0]["images"]
    large[9] |= {"candidates": [{**one["candidates"][0], "images": [again[0], *again, again[0]]}]}
    large[6] |= {"candidates": [*one["candidates"], {"concept": "cone", "bound": 0.125, "images": []}]}
    large[8] |= {"candidates": [], "sample": None, "exemplars": [{**e, "caption": None} for e in one["exemplars"]]}
    large[18] = reports.verified(large[18], "verified")
    large[19] = reports.verified(large[19], "not driven")
    reports.make_run(folder / "large", large)
    reports.small_run(folder / "small")
    (folder / "small" / "evaluation.json").write_text(json.dumps({"figures": FIGURES}))
    units = [reports.unit(store, "a", 0, "red"), reports.unit(store, "a", 1, "blue")]
    reports.make_run(folder / "other", units, settings=OTHER)
    reports.make_run(folder / "foreign", units, target="99" * 32)
    words = [("a", "a dog"), ("a", "dog"), ("a", "wet dog"), ("a", "black cat"), ("b", "cat"), ("b", "tree")]
    words += [("b", "")]
    reports.make_run(
        folder / "profile",
        [
            {**reports.unit(store, layer, n, "red"), "labels": [{"concept": word, "score": 0.5}]}
            | ({} if word else {"status": "uninterpretable"})
            for n, (layer, word) in enumerate(words)
        ],
    )
    reports.hostile_run(folder / "hostile")
    reports.make_run(folder / "huge", [huge(store, index, scale) for index, scale in enumerate(HUGE)])
    for name, runs in {
        "large": ["large"],
        "small": ["small"],
        "hostile": ["hostile"],
        "huge": ["huge"],
        "profile": ["profile"],
        "both": ["small", "other"],
        "foreign": ["small", "foreign"],
    }.items():
        build_report([RunFolder(folder / run) for run in runs], folder / f"{name} report", progress=lambda n: None)
    return folder


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Open]:
    """Open a report; at the end nothing may have gone wrong in it and nothing may have been asked of a network."""
    contexts, faults = [], []

    def visit(name: str, link: str = "", *, size: dict[str, int] = DESK, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport=size, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith("file:") else faults.append(request.url))
        page.goto((folder / f"{name} report" / "index.html").as_uri() + link)
        page.wait_for_selector("#head h1, #main h1", state="attached")
        return page

    visit.faults = faults  # type: ignore[attr-defined]
    yield visit
    for context in contexts:
        context.close()
    assert faults == []


def shown(page: Any) -> list[str]:
    """The units in the list, as far as they are drawn."""
    found: list[str] = page.locator("#list li small bdi").all_inner_texts()
    return found


def test_the_gallery_shows_all_units(visit: Open) -> None:
    page = visit("small")
    assert page.title() == "toy \u00b7 a, b \u00b7 dnd report"
    assert page.inner_text("#count") == "6 units"
    assert "toy \u00b7 100 probing images \u00b7 blip2" in page.inner_text("#head")
    tiles = [page.locator(f"#list a[href='#{name}']") for name in ("a/0", "a/1", "b/3")]
    assert [tile.locator("img").count() for tile in tiles] == [3, 3, 3]
    assert [tile.inner_text().split("\n") for tile in tiles] == [
        ["red", "a / 0", "0.90"], ["green", "a / 1", "\u2717 wrong"], ["uninterpretable", "b / 3"]
    ]  # fmt: skip
    boxes = [tile.bounding_box() for tile in tiles]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[1]["x"] >= boxes[0]["x"] + boxes[0]["width"]
    page.click("button:has-text('failed'):has(strong)")
    assert page.inner_text("#count") == "1 of 6 units"
    assert shown(page) == ["b / 5"]
    page.click("text=Show all")
    page.click("text=right; show the others")
    assert shown(page) == ["a / 1"]
    tiles[1].click()
    expect(page.locator("#main h1")).to_have_text("green")


def test_the_summary_says_what_there_is(visit: Open) -> None:
    page = visit("small", "#summary")
    text = page.inner_text("#main")
    for words in (
        *("4\nlabelled", "1\nuninterpretable", "1\nfailed", "2 of 3", "12.5 %", "blip2", "ab" * 32),
        *("captions: cannot do red", "images of … drive it little", "strongest exemplar", "bad.png", "truncated"),
    ):
        assert words in text
    assert "# < #" not in text
    names = page.locator("table:has(caption:text('Figures of dnd eval')) tbody th")
    assert names.all_inner_texts() == ["text.cosine", "images.mad"]
    head = page.locator("thead button", has_text="value and controls")
    head.click()
    assert names.all_inner_texts() == ["images.mad", "text.cosine"], "by the number, the greatest first"
    head.click()
    assert names.all_inner_texts() == ["text.cosine", "images.mad"]
    chip = page.locator(".chips a[href='#a/1']")
    assert chip.inner_text() == "a / 1"
    expect(chip.locator("img")).to_have_js_property("naturalWidth", 48)
    page.click(".concepts button:has-text('red')")
    expect(page.locator("#head h1")).to_have_text("toy \u00b7 a, b")
    assert shown(page) == ["a / 0"]
    page.click("#only")
    assert page.inner_text("#count") == "6 units"
    page.click("nav >> text=Summary")
    page.click(".reasons button:has-text('uninterpretable')")
    assert shown(page) == ["b / 3"]
    assert page.inner_text("#only") == "reason: images of … drive it little more than random ones ✕"


def test_a_common_label_shows_some_of_its_units_and_leads_to_all(visit: Open) -> None:
    page = visit("large", "#summary")
    assert page.locator(".concepts li").first.locator(".chips a").count() == 6
    page.click(f".chips >> text=and {N - 1 - 6} more")
    assert page.inner_text("#count") == f"{N - 1} of {N} units", "all but the needle"


def test_marks_are_kept_and_saved_as_a_truth(visit: Open, tmp_path: Path) -> None:
    page = visit("small", "#a/0")
    page.keyboard.press("w")
    page.fill("[aria-label=Note]", '=1+"red", at all')
    page.fill("[aria-label='In your words']", "crimson")
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    expect(page.locator("#main h1")).to_have_text("green")
    page.click("[data-set-mark=right]")
    expect(page.locator("[data-set-mark=right]")).to_have_attribute("aria-pressed", "true")
    page.reload()
    page.wait_for_selector("#main h1")
    assert page.locator("[data-set-mark=right]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("o")
    assert "marked wrong" in page.inner_text("#list a[href='#a/0']")
    page.select_option("#sort", "wrong")
    assert shown(page)[:2] == ["a / 0", "a / 1"], "the reader's mark counts before the target's truth"
    page.select_option("#marked", "wrong")
    assert shown(page) == ["a / 0"]
    with page.expect_download() as download:
        page.click("text=Save 2 marks as CSV")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    rows = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert rows[0] == {
        "layer": "a", "unit": "0", "label": "red", "mark": "wrong", "text": "crimson", "note": '\'=1+"red", at all'
    }  # fmt: skip
    assert rows[1] | {"note": ""} == {
        "layer": "a",
        "unit": "1",
        "label": "green",
        "mark": "right",
        "text": "green",
        "note": "",
    }
    truth = read_truth(file)
    assert {unit: one.meanings for unit, one in truth.items()} == {
        Unit("a", 0): (("crimson",),),
        Unit("a", 1): (("green",),),
    }


def test_an_atlas_has_every_unit_beside_like_ones(visit: Open) -> None:
    page = visit("small", "#atlas")
    points = page.locator(".map-of-units a")
    expect(points).to_have_count(6)
    places = [tuple(point.bounding_box().values())[:2] for point in points.all()]
    assert len(set(places)) == 6, "each its own cell"
    page.click(".map-of-units a[href='#a/1']")
    expect(page.locator("#main h1")).to_have_text("green")
    assert page.locator(".nearest a").first.get_attribute("href") == "#b/4", "the other green one"


def test_one_file_is_a_whole_report(browser: Any, folder: Path, tmp_path: Path) -> None:
    mailed = tmp_path / "mailed" / "report.html"
    build_single([RunFolder(folder / "hostile")], mailed, progress=lambda n: None)
    assert [file.name for file in mailed.parent.iterdir()] == ["report.html"]
    faults: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: faults.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    page.goto(mailed.as_uri())
    page.click("#list a >> nth=0")
    page.wait_for_selector(".exemplars img")
    assert page.locator(".exemplars img").first.evaluate("i => i.decode().then(() => i.naturalWidth)") > 0
    assert page.inner_text("#main h1") == reports.HOSTILE["image"]
    page.close()
    assert faults == []
    with pytest.raises(UsageError, match="not a report"):
        build_single([RunFolder(folder / "small")], folder / "small" / "run.json", progress=lambda n: None)


def test_search_filter_and_sort(visit: Open) -> None:
    page = visit("large")
    assert page.inner_text("#count") == f"{N} units"
    assert 5 < page.locator("#list li").count() < 60, "only what is in view is drawn"
    page.fill("#search", "needle")
    assert shown(page) == ["b / 7"]
    page.fill("#search", "DISC number 3 a/")
    assert page.inner_text("#count") == f"0 of {N} units"
    assert page.is_visible("text=No unit fits")
    page.fill("#least", "0.1")
    page.click("text=Show all")
    assert page.inner_text("#count") == f"{N} units"
    assert page.input_value("#least") == ""
    assert not page.is_visible("text=Show all")
    assert not page.is_visible("text=No unit fits")
    page.fill("#search", "b / 29")
    assert shown(page)[:2] == ["b / 29", "b / 129"]
    page.fill("#search", "")
    page.select_option("#layer", "a")
    assert page.inner_text("#count") == f"{N // 2} of {N} units"
    page.select_option("#layer", "")
    page.fill("#most", "0.2")
    assert shown(page) == ["b / 7"]
    page.fill("#most", "")
    page.select_option("#sort", "low")
    assert shown(page)[0] == "b / 7"
    page.select_option("#sort", "label")
    assert shown(page)[0] == "b / 7", "needle comes before red"
    page.select_option("#sort", "verdict")
    assert shown(page)[:2] == ["b / 19", "a / 18"], "the worst first"
    page.select_option("#verdict", "verified")
    assert shown(page) == ["a / 18"]
    assert "verified" in page.inner_text("#list li")
    page.select_option("#verdict", "")
    page.select_option("#sort", "unit")
    page.evaluate("document.getElementById('units').scrollTop = 1e9")
    page.wait_for_selector(f"#list a[href='#b/{N - 1}']")
    assert f"b / {N - 1}" in shown(page)
    assert page.locator("#list li").count() < 60


def test_units_are_filtered_by_a_range_of_what_one_chooses(visit: Open) -> None:
    page = visit("large")
    assert page.locator("#measure option").all_inner_texts() == ["score", "AUC"], "no unit has a confidence"
    page.fill("#most", "0.2")
    assert shown(page) == ["b / 7"]
    page.select_option("#measure", "AUC")
    assert page.inner_text("#count") == f"0 of {N} units"
    page.fill("#most", "1")
    page.fill("#least", "0.9")
    assert page.inner_text("#count") == f"{N - 2} of {N} units", "one has no AUC, one no candidates"


def test_the_concepts_of_each_layer_are_drawn_and_lead_to_their_units(visit: Open) -> None:
    page = visit("profile", "#summary")
    card = page.locator("section", has=page.get_by_role("heading", name="Concepts by layer"))
    bars = card.get_by_role("img")
    assert [bars.nth(n).get_attribute("aria-label") for n in range(2)] == ["dog 75 %, cat 25 %", "cat 50 %"]
    widths = [part.bounding_box()["width"] for part in bars.nth(0).locator("span").all()]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.02)
    assert bars.nth(1).locator("span").count() == 2, "a word of one unit alone is among the others"
    card.get_by_role("button", name="cat").click()
    assert page.inner_text("#count") == "2 of 7 units"
    assert shown(page) == ["a / 3", "b / 4"]


def test_a_long_layer_leaves_its_unit_readable(visit: Open) -> None:
    page = visit("hostile", size=PHONE)
    assert [name[-4:] for name in shown(page)] == [f" / {n}" for n in range(len(reports.HOSTILE))]
    assert page.locator("#list small bdi").evaluate_all("all => all.every(a => a.scrollWidth < a.clientWidth + 2)")


def test_units_without_a_label_are_not_sorted_by_what_came_closest(visit: Open) -> None:
    page = visit("small")
    for order in ("score", "low"):
        page.select_option("#sort", order)
        assert set(shown(page)[-2:]) == {"b / 3", "b / 5"}
    page.select_option("#sort", "label")
    assert shown(page) == ["a / 2", "a / 1", "b / 4", "a / 0", "b / 5", "b / 3"]
    page.fill("#least", "0.01")
    assert page.inner_text("#count") == "4 of 6 units"
    page.fill("#least", "")
    page.select_option("#sort", "auc")
    assert page.locator("#list .score").all_inner_texts() == ["0.95"] * 5, "what is sorted by is what is shown"


def test_the_page_says_what_its_figures_mean(visit: Open) -> None:
    text = visit("small", "#a/0").inner_text("#main")
    for words in ("Score: how well", "by the scorer", "0.5 is chance", "Pink box", "dark where the unit is quiet"):
        assert words in text
    text = visit("large", "#a/8").inner_text("#main")
    assert "Grey:" not in text
    assert "AUC:" not in text
    page = visit("small", "#b/5")
    assert "Score:" not in page.inner_text("#main"), "it failed: there is no score"
    for value, said in ((5.7e-6, "5.7e-6"), (0.00057, "0.00057"), (0, "0"), (-8.611, "-8.61"), (1234.5, "1,235")):
        assert page.evaluate(f"dnd.measure({value})") == said


def test_without_scripts_the_page_says_so_and_offers_nothing_dead(browser: Any, folder: Path) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto((folder / "small report" / "index.html").as_uri())
    assert "labels.csv" in page.inner_text("main")
    assert not page.locator("input, select, button").locator("visible=true").count()
    page.close()


def test_a_unit_shows_its_evidence(visit: Open) -> None:
    page = visit("small")
    page.click("#list a[href='#a/1']")
    page.wait_for_selector(".exemplars")
    assert page.inner_text("#main h1") == "green"
    assert page.url.endswith("#a/1")
    columns = [page.locator(f".why .{name}").bounding_box() for name in ("exemplars", "verdict", "synthetic")]
    assert columns[0]["x"] < columns[1]["x"] < columns[2]["x"]
    assert page.locator(".exemplars figure").all_inner_texts() == ["2.00 crop", "1.70", "1.40", "1.10"]
    assert page.locator(".captions li").nth(1).inner_text() == "a green disc, number 1 photos/green-1-1.png"
    assert page.locator(".synthetic figure").all_inner_texts() == ["1.50", "1.00", "0.50"]
    words = page.locator(".evidence-plot").get_attribute("aria-label")
    assert words == (
        "random images: median 0.10, 95 % below 0.60; exemplars: 4 activations from 1.10 to 2;"
        " images of the label: 3 activations from 0.50 to 1.50"
    )
    assert page.locator(".evidence-plot text", has_text="weakest exemplar: 1.10").count() == 1
    assert page.locator(".candidate .concept").all_inner_texts() == ["disc"]
    assert "teal" in page.inner_text(".warning")
    page.click(".provenance summary")
    assert "ef" * 32 in page.inner_text(".provenance")
    for image in page.locator(".exemplars .only img").all():
        expect(image).to_have_js_property("complete", True)
        assert image.evaluate("i => i.naturalWidth") == 96


@pytest.mark.parametrize("index", range(len(HUGE)))
def test_activations_as_large_as_floats_are_lie_where_they_belong(visit: Open, index: int) -> None:
    page = visit("huge", f"#a/{index}")
    plot, strip = page.locator("svg.evidence-plot"), page.locator("svg.strip")
    expect(plot).to_have_count(1)
    expect(strip).to_have_count(1)

    def places(drawing: Any, what: str, attribute: str) -> list[float]:
        return [float(one.get_attribute(attribute)) for one in drawing.locator(what).all()]

    def shares(what: str, attribute: str) -> list[float]:
        return [(place - 158) / 594 for place in places(plot, what, attribute)]

    assert shares("circle.exemplar", "cx") == pytest.approx([1, 5 / 6, 2 / 3, 1 / 2], abs=0.01)
    assert sorted(shares("circle.of-label", "cx")) == pytest.approx([0, 1 / 2, 3 / 4], abs=0.01)
    assert shares("line.p95", "x1") == pytest.approx([3 / 4, 1 / 2], abs=0.01)
    assert places(plot, "rect.sample", "x") == pytest.approx([0, 225], abs=0.1)
    assert sorted(places(strip, "circle", "cx")) == pytest.approx([4, 150, 225], abs=0.1)
    words = [str(one.get_attribute("aria-label")) for one in (plot, strip)]
    assert not re.search(r"NaN|Infinity|undefined", " ".join([*words, page.locator("#main").inner_text()]))


def test_the_histograms_of_activations_as_large_as_floats_are_have_their_bars(visit: Open) -> None:
    page = visit("huge", "#summary")
    page.wait_for_selector("figure.chart", state="attached")
    drawn = [one.get_attribute(name) for name in ("x", "width") for one in page.locator("figure.chart rect").all()]
    assert len(drawn) > 10
    assert all(0 <= float(value) <= 300 for value in drawn)


def test_a_candidate_whose_images_were_stopped_shows_its_bound(visit: Open) -> None:
    page = visit("large", "#a/6")
    fold = page.locator("details", has_text="could no longer become a label")
    expect(fold.locator("summary")).to_have_text("1 candidate that could no longer become a label")
    fold.locator("summary").click()
    assert fold.locator(".candidate").all_inner_texts() == ["cone\nscore at best\n0.13"]


def test_a_unit_of_another_method_shows_what_it_has(visit: Open) -> None:
    """No captions, candidates or sample: a rival's label, or a run of an earlier version."""
    page = visit("large", "#a/8")
    expect(page.locator("#main h1")).to_have_text("red")
    assert page.locator(".exemplars figure").count() == 4
    assert page.locator(".synthetic").count() == 0
    assert page.locator(".exemplars img").first.get_attribute("alt") == "Exemplar 1"
    assert page.locator(".candidate").all_inner_texts() == ["disc\nscore\n0.20"]


def test_an_image_that_several_seeds_gave_is_shown_once(visit: Open) -> None:
    page = visit("large", "#b/9")
    page.wait_for_selector(".synthetic")
    assert page.locator(".synthetic figure").all_inner_texts() == ["1.50", "1.00", "0.50 (3\u00d7)"]
    assert "5 activations" in page.locator(".evidence-plot").get_attribute("aria-label")


def test_a_verified_label_shows_its_verdict_and_what_it_rests_on(visit: Open) -> None:
    page = visit("hostile", "#summary")
    table = page.locator("table:has(caption:text('Verdicts on labels'))")
    assert [row.split() for row in table.locator("tr").all_inner_texts()] == [["too", "narrow", "6", "units"]]
    page.goto(page.url.split("#")[0])
    page.click("#list li >> nth=0")
    assert "Verdict on new images: too narrow" in page.inner_text(".tested-names")
    assert page.inner_text(".tested-names tbody tr").split("\t")[1:] == ["broader", "0.97", "0.50", "0.95"]
    assert page.locator(".tested-names tbody th").text_content() == reports.HOSTILE["image"]
    assert "0.91" in page.inner_text(".tested-names .metrics")
    assert visit("small", "#a/0").locator(".tested-names").count() == 0


def test_boxes_maps_and_crops_can_be_switched(visit: Open) -> None:
    page = visit("small", "#a/0")
    first = page.locator(".exemplars figure").first
    box = first.locator("rect.own").bounding_box()
    frame = first.locator(".frame.whole").bounding_box()
    assert box["x"] - frame["x"] == pytest.approx(0.1 * frame["width"], abs=3)
    assert box["height"] == pytest.approx(0.6 * frame["height"], abs=4)
    assert first.locator("rect.other").is_visible()
    page.click("text=Attention boxes")
    assert not first.locator("rect.own").is_visible()
    assert not first.locator("canvas").is_visible()
    page.keyboard.press("m")
    assert page.locator("[data-toggle=maps]").get_attribute("aria-pressed") == "true"
    assert first.locator("canvas").is_visible()
    pixels = first.locator("canvas").evaluate("c => [...c.getContext('2d').getImageData(0, 3, 8, 1).data]")
    alphas = pixels[3::4]
    assert alphas[0] == 0
    assert alphas[7] > 200, "dark where the unit is quiet"
    assert not first.locator(".crop").is_visible()
    page.keyboard.press("c")
    assert first.locator(".crop").is_visible()
    assert not first.locator(".whole").is_visible()
    page.goto(page.url.replace("#a/0", "#a/1"))
    expect(page.locator("#main h1")).to_have_text("green")
    assert page.locator(".exemplars canvas").first.evaluate("c => c.closest('.exemplars').classList.contains('maps')")
    first.locator("button").click()
    dialog = page.locator("#large")
    assert "crop" in dialog.inner_text()
    assert dialog.locator(".whole").is_visible()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_keys_lead_from_unit_to_unit(visit: Open) -> None:
    page = visit("small")
    for key, heading in (("j", "red"), ("j", "green"), ("j", "blue"), ("k", "green")):
        page.keyboard.press(key)
        expect(page.locator("#main h1")).to_have_text(heading)
    assert page.url.endswith("#a/1")
    assert page.locator("#list a[aria-current=true]").get_attribute("href") == "#a/1"
    page.keyboard.press("/")
    page.keyboard.type("blue jk")
    assert page.input_value("#search") == "blue jk"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("o")
    expect(page.locator("#head h1")).to_have_text("toy \u00b7 a, b")
    page.go_back()
    expect(page.locator("#main h1")).to_have_text("green")


def test_every_view_is_as_high_as_its_window_and_keys_scroll_it(visit: Open) -> None:
    for name in ("large", "both"):
        page = visit(name, size={"width": 1100, "height": 420})
        for view in ("summary", "gallery", "unit"):
            if view == "unit":
                page.click("#list a")
                page.wait_for_selector("#main >> text=Next")
            else:
                page.evaluate(f"location.hash = '#{view.removeprefix('gallery')}'")
            page.wait_for_selector(f"body[data-view={view}]")
            pane = "units" if view == "gallery" else "main"
            page.wait_for_selector(f"#{pane} h1")
            heights = page.evaluate("[document.documentElement.scrollHeight, innerHeight]")
            assert heights[0] == heights[1], f"{name}, {view}: the document goes on below its window"
            scrolled = f"document.getElementById('{pane}').scrollTop"
            most = page.evaluate("pane => pane.scrollHeight - pane.clientHeight", page.query_selector(f"#{pane}"))
            if view == "gallery" and name == "both":
                continue  # six units need no scrolling
            assert most > 0
            for key, places in (("End", [most]), ("Home", [0]), ("PageDown", range(1, most + 1)), ("PageUp", [0])):
                page.keyboard.press(key)
                assert round(page.evaluate(scrolled)) in places, (name, view, key)
            page.keyboard.press("Space")
            assert page.evaluate(scrolled) > 0


def test_links_lead_to_units_and_wrong_ones_say_so(visit: Open) -> None:
    assert visit("large", "#b/7").inner_text("#main h1") == "needle"
    page = visit("small", "#b/5")
    assert page.inner_text("#main h1") == "No label"
    assert "captions: cannot do red" in page.inner_text(".reason")
    assert "There is no such unit" in visit("small", "#b/77").inner_text("#head")
    assert "There is no such unit" in visit("small", "#%E0%A4%A/1").inner_text("#head")


def test_light_and_dark(visit: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page = visit("small", scheme="dark")
    dark = page.evaluate(ground)
    page.click("#theme")
    light = page.evaluate(ground)
    assert sum(map(int, dark[4:-1].split(","))) < 120 < 600 < sum(map(int, light[4:-1].split(",")))
    page.reload()
    page.wait_for_selector("#head h1")
    assert page.evaluate(ground) == light


def test_a_printed_page_holds_all_of_a_view_in_dark_ink(visit: Open) -> None:
    page = visit("small", "#a/0", scheme="dark")
    page.click("#theme")
    page.click("#theme")
    page.emulate_media(media="print", color_scheme="dark")
    for view in ("#a/0", "#summary"):
        page.evaluate(f"location.hash = '{view}'")
        expect(page.locator("body")).to_have_attribute("data-view", "unit" if view == "#a/0" else "summary")
        whole, seen = page.evaluate("[document.querySelector('#main').scrollHeight, document.body.clientHeight]")
        assert DESK["height"] < whole <= seen
    assert page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(27, 31, 39)"
    assert not page.is_visible("#units")


def test_a_printed_gallery_holds_every_unit(visit: Open) -> None:
    page = visit("large")
    assert page.locator("#list li").count() < N
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("#list li").count() == N
    first, last = (page.locator(f"#list li >> nth={place}").bounding_box() for place in (0, N - 1))
    assert last["y"] > first["y"] + 20 * first["height"], "one after another, not one above another"
    assert page.evaluate("document.documentElement.scrollHeight") >= last["y"] + last["height"]
    assert not page.is_visible("#filters")


def test_a_phone_shows_one_thing_at_a_time(visit: Open) -> None:
    page = visit("small", size=PHONE, has_touch=True)
    for link, view in {"": "gallery", "#summary": "summary", "#atlas": "atlas", "#a/0": "unit"}.items():
        page.evaluate(f"location.hash = '{link}'")
        expect(page.locator("body")).to_have_attribute("data-view", view)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], link
    assert not page.is_visible("#units")
    page.evaluate("document.getElementById('run-name').textContent = 'a name that leaves no room '.repeat(3)")
    assert page.locator("header").bounding_box()["height"] < 60
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.tap("nav >> text=Units")
    expect(page.locator("#search")).to_be_visible()
    assert not page.is_visible("#main")
    page.tap("#list a[href='#b/4']")
    expect(page.locator("#main h1")).to_have_text("green")
    assert page.is_visible(".exemplars")


def test_runs_side_by_side(visit: Open) -> None:
    page = visit("both")
    assert shown(page)[0] == "a / 1", "different labels first"
    assert "2 runs side by side" in page.inner_text("#head h1")
    page.click("nav >> text=Summary")
    page.wait_for_selector("text=What differs")
    assert "different networks" not in page.inner_text("#main")
    differing = page.locator(".card", has_text="What differs").locator("tbody tr").all_inner_texts()
    assert differing == ["captioner.backend\tblip2\t\u2013", "run.seed\t0\t1", "method.name\t\u2013\tclip-dissect"]
    page.click("#main td:nth-child(3) button")
    assert page.input_value("#agreement") == "same"
    assert shown(page) == ["a / 0"]
    page.select_option("#agreement", "partial")
    assert page.inner_text("#count") == "4 of 6 units"
    page.select_option("#agreement", "")
    page.click("#list a[href='#a/1']")
    page.wait_for_selector(".columns .exemplars")
    assert page.locator(".column h2").all_inner_texts() == ["A green", "B blue"]
    assert page.locator(".exemplars").count() == 2, "other exemplars in each run"
    left, right = (page.locator(".column").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"]
    assert right["x"] > left["x"] + left["width"]
    page.click("#list a[href='#b/4']")
    page.wait_for_selector("text=This run does not have the unit.")
    page.click("#list a[href='#b/3']")
    expect(page.locator(".column h2")).to_have_text(["A No label", "B other"])


def test_runs_of_different_networks_say_so(visit: Open) -> None:
    assert "These runs studied different networks" in visit("foreign", "#summary").inner_text("#main .warning")


def test_evidence_that_is_gone_is_said(visit: Open, folder: Path) -> None:
    shutil.copytree(folder / "small report", folder / "torn report")
    (folder / "torn report" / "units" / "0.js").unlink()
    page = visit("torn", "#a/0")
    assert "units/0.js cannot be read" in page.inner_text("#main")
    assert any("ERR_FILE_NOT_FOUND" in fault for fault in visit.faults)  # type: ignore[attr-defined]
    visit.faults.clear()  # type: ignore[attr-defined]


def test_texts_that_would_like_to_be_code_stay_texts(visit: Open) -> None:
    """No dialog, no error, no refusal by the policy, not a foreign element: see also `visit`."""
    page = visit("hostile", "#summary")
    for text in reports.HOSTILE.values():
        assert text.replace("\x00", "").strip() in page.evaluate("document.querySelector('#main').textContent").replace(
            "\x00", ""
        )
    layer = page.evaluate("dnd.data.units[0].layer")
    for index, text in enumerate(reports.HOSTILE.values()):
        page.click(f"#list li >> nth={index}")
        expect(page).to_have_title(re.compile(f" / {index} "))
        assert text in page.evaluate("document.querySelector('#main').textContent")
        assert page.evaluate("decodeURIComponent(location.hash)") == f"#{layer}/{index}"
        page.click(".exemplars .picture >> nth=0")
        assert text in page.evaluate("document.querySelector('dialog[open]').textContent")
        page.keyboard.press("Escape")
    page.fill("#search", reports.HOSTILE["image"])
    assert (
        page.evaluate(
            "document.querySelectorAll('[onerror], [onload], script:not([src]), iframe, [href^=javascript]').length"
        )
        == 0
    )
    images = page.evaluate("[...document.images].map(i => i.getAttribute('src'))")
    assert all(source.startswith("images/") for source in images)
    with pytest.raises(sync_api.Error, match="TrustedHTML"):  # were there a mistake, the browser would stop it
        page.evaluate("document.body.innerHTML = '<b>x</b>'")
    visit.faults.clear()  # type: ignore[attr-defined]


def test_a_corpus_of_hostile_files_is_shown_as_it_is(visit: Open, folder: Path) -> None:
    """From files on disk through the whole of `dnd run` and `dnd report`: names read right, images show."""
    run, bad = run_corpus(folder / "corpus")
    done = CliRunner().invoke(cli, ["report", str(run), "--out", str(folder / "corpus report")], catch_exceptions=False)
    assert done.exit_code == 0
    assert "not in the report" not in done.output
    page = visit("corpus", "#summary")
    overview = page.evaluate("document.querySelector('#main').textContent")
    assert all(name in overview for name in bad)
    assert {"<script>alert(2)</script>.png", "two\nlines.png", "ab\u202egnp.png"} <= set(NAMES)
    left = {*NAMES, "bytes-\ufffd\ufffd.png", "one.png", "cmyk.jpg", "rotated.jpg", "animated.gif"}
    for index in range(4):
        page.goto(page.url.partition("#")[0] + f"#units/{index}")
        expect(page).to_have_title(re.compile(f" / {index} "))
        if index == 3:  # it is silent: no image is an exemplar of it
            assert page.locator(".exemplars figure").count() == 0
            continue
        page.wait_for_selector(".exemplars figure")
        figures = page.locator(".captions li").evaluate_all("all => all.map(one => one.textContent)")
        assert all(" thing<script>alert(3)</script>" in text for text in figures)
        left -= {name for name in left if any(name in text for text in figures)}
        page.click(".exemplars .picture >> nth=0")
        page.keyboard.press("Escape")
        page.evaluate("""async () => {
            for (const one of document.images) one.loading = 'eager';  // also those out of sight
            await Promise.all([...document.images].map(one => one.decode()));  // refused by an image that is none
        }""")
        assert page.locator("[onerror], [onload], script:not([src]), iframe, #main svg script").count() == 0
        sources = page.evaluate("[...document.images].map(one => one.getAttribute('src'))")
        assert sources
        assert all(re.fullmatch(r"images/[0-9a-f]{24}(-large)?\.jpg", source) for source in sources)
    assert left == set()


def test_every_figure_of_an_evaluation_is_drawn(visit: Open) -> None:
    page = visit("small", "#summary")
    plots = page.locator("svg.interval")
    expect(plots).to_have_count(2)
    expect(plots.nth(1)).to_have_attribute(
        "aria-label", "images.mad: 3.50, 95 % 3.40 to 3.60; shuffled 0.10, best constant 0.20"
    )
    ticks = [float(one.get_attribute("x1")) for one in plots.nth(1).locator("line.control").all()]
    dot = float(plots.nth(1).locator("circle").get_attribute("cx"))
    assert ticks == sorted(ticks)
    assert ticks[-1] < dot


@pytest.mark.parametrize("scheme", ["light", "dark"])
@needs.axe
def test_axe_finds_no_violation(visit: Open, scheme: str) -> None:
    views = [("small", "#a/0", DESK), ("both", "#a/1", DESK), ("small", "", PHONE), ("small", "#atlas", DESK)]
    if scheme == "light":
        views += [("small", "#summary", DESK), ("both", "#summary", DESK), ("both", "", DESK), ("small", "#a/0", PHONE)]
    for name, link, size in views:
        page = visit(name, link, size=size, scheme=scheme, bypass_csp=True)
        if "/" in link:
            page.wait_for_selector(".candidates")
        reports.assert_accessible(page, f"{name}{link}")
