"""What the report of a large run costs: building it, opening it, filtering its list.

    python benchmarks/report.py [--units 2048] [--folder FOLDER] [--out benchmarks/results/report.json]

The run is made up: units with 10 exemplars of their own (photo-like, 224 pixels; three in ten are crops, shown in
their source), attention boxes and maps, 5 candidates with 10 images each of 800 concepts, captions. The report is
built by `dnd report` in a process of its own; its peak memory and its CPU seconds are the kernel's figures for that
process. Then a headless Chromium opens the page from disk, anew each time, and searches, filters and scrolls it. With
--folder what was made is kept there, and used when it is there.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console

from dnd.store.images import Store

EXEMPLARS, CANDIDATES, IMAGES, CONCEPTS = 10, 5, 10, 800
SIZE = 224
WORDS = [
    *("red", "blue", "striped", "spotted", "furry", "wet", "round", "tall", "old", "glass"),
    *("wooden", "bright", "dog", "cat", "boat", "tree", "wheel", "face", "sky", "leaf"),
]
OPEN = 5
"""Times that the page is opened, each in a fresh browser profile."""


def photo(seed: int, bases: list[np.ndarray[Any, Any]]) -> Image.Image:
    """An image of its own, as detailed as a photograph: blurred colours with a little noise."""
    rng = np.random.default_rng(seed)
    base = np.roll(bases[seed % len(bases)], tuple(rng.integers(0, SIZE, 2)), (0, 1))
    return Image.fromarray(base // 2 + np.uint8(rng.integers(0, 128)))


def make_images(store: Store, n: int) -> list[str]:
    rng = np.random.default_rng(0)
    bases = []
    for _ in range(64):
        blurred = Image.fromarray(rng.integers(0, 255, (SIZE // 8, SIZE // 8, 3), dtype=np.uint8))
        pixels = np.asarray(blurred.resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
        noisy = pixels + rng.normal(0, 3, (SIZE, SIZE, 1)).astype(np.int16)
        bases.append(np.clip(noisy, 0, 255).astype(np.uint8))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda seed: store.put_image(photo(seed, bases)).digest, range(n)))


def make_run(folder: Path, n: int) -> None:
    """A run folder of n units, with its store beside it."""
    store = Store(folder.parent / ".dnd-store")
    digests = make_images(store, n * EXEMPLARS + CONCEPTS * IMAGES)
    own, drawn = digests[: n * EXEMPLARS], digests[n * EXEMPLARS :]
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "labels.jsonl").open("w", encoding="utf-8") as file:
        for index in range(n):
            file.write(json.dumps(make_unit(index, own, drawn, rng)) + "\n")
    (folder / "labels.csv").touch()  # the report reads the other one
    (folder / "run.toml").write_text('[target]\nname = "made-up"\n', "utf-8")
    (folder / "run.json").write_text("{}", "utf-8")


def make_unit(index: int, own: list[str], drawn: list[str], rng: np.random.Generator) -> dict[str, Any]:
    exemplars: list[dict[str, Any]] = []
    for place in range(EXEMPLARS):
        exemplar: dict[str, Any] = {
            "image": own[index * EXEMPLARS + place],
            "source": f"photos/{index:05}-{place}.jpg",
            "box": None,
            "activation": round(float(5 - place * 0.2 + rng.random()), 3),
            "caption": "a " + " ".join(rng.choice(WORDS, 9)),
            "boxes": [[0.1, 0.2, 0.5, 0.7], [0.6, 0.1, 0.9, 0.4]],
            "map": {
                "shape": [14, 14],
                "frame": [0, 0, 1, 1],
                "cells": base64.b64encode(rng.integers(0, 256, 196, dtype=np.uint8).tobytes()).decode(),
            },
        }
        if place % 10 < 3:
            exemplar |= {"box": [0.1, 0.2, 0.5, 0.7], "view": own[int(rng.integers(len(own)))]}
        exemplars.append(exemplar)
    candidates = []
    for concept in rng.choice(CONCEPTS, CANDIDATES, replace=False):
        name = " ".join(np.random.default_rng(concept).choice(WORDS, 2))
        images = drawn[concept * IMAGES : (concept + 1) * IMAGES]
        candidates.append(
            {
                "concept": name,
                "score": round(float(rng.random()), 4),
                "auc": round(float(rng.random()), 4),
                "images": [{"image": one, "activation": round(float(rng.random() * 5), 4)} for one in images],
            }
        )
    candidates.sort(key=lambda one: -one["score"])
    status = "labelled" if index % 5 else "uninterpretable"
    return {
        "layer": f"layer{index * 4 // 2048 + 1}",
        "unit": index,
        "status": status,
        "labels": [{"concept": one["concept"], "score": one["score"]} for one in candidates[:3]],
        "reason": "" if index % 5 else "images of 'x' drive it little more than random ones: 0.55 < 0.70",
        "exemplars": exemplars,
        "candidates": candidates,
        "sample": {"n": 256, "low": 0.0, "high": 4.0, "median": 0.4, "p95": 2.0, "counts": [100, 60, 40, 30, 20, 6]},
    }


def build(run: Path) -> dict[str, float]:
    """`dnd report` once, from nothing: wall and CPU seconds, and the peak of its memory."""
    shutil.rmtree(run / "report", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dnd", "report", str(run)], check=True, env={**os.environ, "DND_STORE": ""})
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_memory_mb": round(after.ru_maxrss / 1024),
    }


OPENED = (
    """() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"""
)
FILTER = """([id, value]) => new Promise(done => {
  const began = performance.now(), input = document.getElementById(id);
  input.value = value;
  input.dispatchEvent(new Event("input", {bubbles: true}));
  document.getElementById("list").getBoundingClientRect();
  const drawn = performance.now() - began;
  requestAnimationFrame(() => requestAnimationFrame(() => done(drawn)));
})"""


def browse(page_url: str) -> dict[str, Any]:
    """Milliseconds until the page can be read, and until the list shows what was asked for."""
    opened, unit, filtered = [], [], {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        version = browser.version
        for _ in range(OPEN):
            page = browser.new_page()
            page.goto(page_url)
            page.wait_for_selector("#head h1")
            page.wait_for_selector("#list li")
            opened.append(page.evaluate(OPENED))
            began = time.perf_counter()
            page.keyboard.press("j")
            page.wait_for_selector(".candidates")
            unit.append((time.perf_counter() - began) * 1000)
            if len(opened) < OPEN:
                page.close()
        for id_, value in (("search", "s"), ("search", "striped dog"), ("search", ""), ("status", "uninterpretable"),
                           ("status", ""), ("layer", "layer3"), ("layer", ""), ("least", "0.9"), ("least", ""),
                           ("sort", "score"), ("sort", "label")):  # fmt: skip
            filtered[f"{id_} = {value}"] = round(
                statistics.median(page.evaluate(FILTER, [id_, value]) for _ in range(5)), 1
            )
        drawn = page.locator("#list li").count()
        browser.close()
    return {
        "chromium": version,
        "open_ms": {"median": round(statistics.median(opened)), "worst": round(max(opened))},
        "first_unit_ms": {"median": round(statistics.median(unit)), "worst": round(max(unit))},
        "filter_ms": filtered,
        "filter_worst_ms": max(filtered.values()),
        "list_items_drawn": drawn,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=2048)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = (given.folder or Path(temporary)) / "run"
        if not (run / "run.json").exists():
            make_run(run, given.units)
        load = os.getloadavg()[0]
        built = build(run)
        files = [file for file in (run / "report").rglob("*") if file.is_file()]
        found = {
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "load_average_before": round(load, 1),
            "versions": {name: metadata.version(name) for name in ("dnd-describe", "pillow", "pydantic", "playwright")},
            "python": platform.python_version(),
            "run": {
                "units": given.units,
                "exemplars": EXEMPLARS,
                "candidates": CANDIDATES,
                "images_per_candidate": IMAGES,
                "distinct_images": given.units * EXEMPLARS + CONCEPTS * IMAGES,
                "image_pixels": SIZE,
            },
            "build": built,
            "report": {"files": len(files), "mb": round(sum(file.stat().st_size for file in files) / 1e6)},
            "browser": browse((run / "report" / "index.html").resolve().as_uri()),
        }
    text = json.dumps(found, indent=1)
    Console().print_json(text)
    if given.out:
        given.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
