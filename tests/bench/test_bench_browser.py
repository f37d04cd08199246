"""The page of `dnd bench` in a real browser: what is drawn, sorted, coloured and linked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import needs
import pytest
import reports

from dnd.bench.compare import Bench, measure
from dnd.bench.outcome import Outcome
from dnd.bench.page import page

try:
    from playwright import sync_api
    from playwright.sync_api import expect
except ImportError:  # then all are skipped
    pass
pytestmark = needs.browser

Open = Callable[..., Any]
RIGHT = {"cheap+one": 0.3, "dear+one": 0.9, "cheap+two": 0.5, "dear+two": 0.6}


def outcome(name: str, right: float, seconds: float, repeat: int = 0, variants: Mapping[str, str] = {}) -> Outcome:
    values = {f"u/{i}": float(i < right * 20) for i in range(20)}
    stages = {"scores": {"key": f"{name} {repeat}", "items": 20, "computed": 20, "failed": 0, "seconds": seconds}}
    return Outcome(
        name, "k", dict(variants), values={"match.graded": values}, repeat=repeat, seconds=seconds, stages=stages
    )


def four() -> Bench:
    """Two axes with two variants each, two runs of each combination."""
    axes = {name: dict(zip(("captioner", "scorer"), name.split("+"), strict=True)) for name in RIGHT}
    return measure(
        [outcome(n, right, 10.0 * at, r, axes[n]) for r in (0, 1) for at, (n, right) in enumerate(RIGHT.items(), 1)],
        "cheap+one",
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=needs.find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open the page of a bench; at the end nothing may have gone wrong in it."""
    faults: list[str] = []

    def visit(bench: Bench, **options: Any) -> Any:
        (tmp_path / "bench.html").write_text(page(bench, "a matrix", tmp_path), "utf-8")
        shown = browser.new_page(viewport={"width": 1200, "height": 800}, **options)
        shown.on("console", lambda message: faults.append(message.text))
        shown.on("pageerror", lambda error: faults.append(str(error)))
        shown.goto((tmp_path / "bench.html").as_uri())
        return shown

    yield visit
    assert faults == []


def names(shown: Any) -> Sequence[str]:
    texts: list[str] = shown.locator("#combinations tbody td:nth-child(2)").all_inner_texts()
    return [text.split()[0] for text in texts]


def test_the_page_draws_sorts_and_colours(visit: Open) -> None:
    shown = visit(four())
    assert shown.title() == "a matrix \u00b7 dnd bench"
    assert names(shown) == ["dear+one", "dear+two", "cheap+two", "cheap+one"]
    dots = shown.locator("svg.scatter circle")
    titles = dots.locator("title").all_text_contents()
    assert [re.sub(r" \[.*\]", "", title) for title in titles] == [
        "1 dear+one: 0.900, 20.0 s",
        "2 dear+two: 0.600, 40.0 s",
        "3 cheap+two: 0.500, 30.0 s",
        "4 cheap+one: 0.300, 10.0 s",
    ]
    words = shown.locator("svg.scatter text").all_text_contents()
    assert {"1 dear+one", "2", "3", "4 cheap+one"} <= set(words), "each has its number, the front its name"
    boxes = {
        text: shown.locator("svg.scatter text", has_text=text).bounding_box() for text in ("1 dear+one", "4 cheap+one")
    }
    assert boxes["1 dear+one"]["y"] < boxes["4 cheap+one"]["y"]

    def colours() -> list[str]:
        found: list[str] = dots.evaluate_all("all => all.map(one => getComputedStyle(one).fill)")
        return found

    assert shown.locator("select").input_value() == "captioner"
    by_captioner = colours()
    assert by_captioner[0] == by_captioner[1] != by_captioner[2] == by_captioner[3]
    shown.select_option("select", "scorer")
    by_scorer = colours()
    assert by_scorer[0] == by_scorer[3] != by_scorer[1] == by_scorer[2]
    assert shown.locator(".legend").inner_text().split("\n")[:2] == ["one", "two"]

    seconds = shown.locator("#combinations thead button", has_text="seconds alone")
    seconds.click()
    assert names(shown) == ["dear+two", "cheap+two", "dear+one", "cheap+one"]
    expect(shown.locator("#combinations th[aria-sort]")).to_have_attribute("aria-sort", "descending")
    seconds.click()
    assert names(shown) == ["cheap+one", "dear+one", "cheap+two", "dear+two"]
    shown.click("#combinations thead button:has-text('combination')")
    assert names(shown) == ["cheap+one", "cheap+two", "dear+one", "dear+two"]
    shown.click("#combinations thead button:has-text('against')")
    assert names(shown) == ["dear+one", "dear+two", "cheap+two", "cheap+one"], "the reference lies at 0"
    assert shown.locator("#combinations svg.interval").count() == 4 + 3
    assert shown.locator("#main-effects svg.interval").count() == 2


def test_every_run_of_a_combination_is_linked(visit: Open, tmp_path: Path) -> None:
    report = tmp_path / "runs" / "dear+one@1" / "report"
    report.mkdir(parents=True)
    (report / "index.html").write_text("<title>the second</title>", "utf-8")
    shown = visit(four())
    row = shown.locator("#combinations tbody tr", has_text="dear+one")
    links = row.locator("a").evaluate_all("all => all.map(one => one.getAttribute('href'))")
    assert links == ["runs/dear%2Bone/", "runs/dear%2Bone%401/report/index.html"]
    row.locator("a >> nth=1").click()
    expect(shown).to_have_title("the second")


def test_a_failed_combination_stays_last(visit: Open) -> None:
    broken = Outcome("broken", "k", reason="its weights are <b>gone</b>")
    bench = measure([broken, outcome("a", 0.5, 1.0), outcome("b", 0.7, 2.0)], "a")
    shown = visit(bench)
    for head in ("no.", "right", "seconds alone"):
        shown.click(f"#combinations thead button:has-text('{head}')")
        assert names(shown)[-1] == "broken"
    assert "its weights are <b>gone</b>" in shown.inner_text("#combinations")
    assert shown.locator("#combinations b").count() == 0


def test_without_scripts_the_page_says_where_the_tables_are(visit: Open) -> None:
    shown = visit(four(), java_script_enabled=False)
    assert "bench.md" in shown.inner_text("main")


@needs.axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(visit: Open, scheme: str) -> None:
    shown = visit(four(), color_scheme=scheme, bypass_csp=True)
    shown.click("#combinations thead button:has-text('right')")
    reports.assert_accessible(shown)
