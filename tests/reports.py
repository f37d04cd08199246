"""Run folders as `dnd run` leaves them, without running anything: for the tests and the benchmark of the report."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dnd.store.images import Store

COLOURS = {"red": (200, 40, 40), "green": (40, 150, 70), "blue": (50, 80, 200), "grey": (120, 120, 120)}

HOSTILE = {
    "image": "<img src=x onerror=alert(1)>",
    "script": "</script><script>alert(2)</script>",
    "link": "javascript:alert(3)",
    "quote": "\"'><svg/onload=alert(4)>",
    "template": "${alert(5)} {{7*7}} __proto__ constructor",
    "bidi": "\u202eevil\u2028line\u2029 \x00 & &lt;b&gt;",
}


def picture(colour: str, seed: int, size: int = 96) -> Image.Image:
    """A disc of a colour on a tinted ground."""
    rng = np.random.default_rng([*colour.encode(), seed])
    image = Image.new("RGB", (size, size * 3 // 4), tuple(int(v) for v in rng.integers(170, 250, 3)))
    x, y = (int(v) for v in rng.integers(4, size // 2, 2))
    ImageDraw.Draw(image).ellipse((x, y // 2, x + size // 3, y // 2 + size // 3), fill=COLOURS[colour])
    return image


def cells(seed: int = 0, edge: int = 8) -> str:
    """A map that is high on the left."""
    values = np.linspace(255, 0, edge)[None].repeat(edge, 0).astype(np.uint8)
    return base64.b64encode(np.roll(values, seed, 0).tobytes()).decode()


def unit(store: Store, layer: str, index: int, colour: str, status: str = "labelled", k: int = 4) -> dict[str, Any]:
    """A line of labels.jsonl: exemplars (the first is a crop) and two candidates with images."""
    view = store.put_image(picture(colour, index)).digest
    exemplars: list[dict[str, Any]] = []
    for place in range(k):
        image = store.put_image(picture(colour, index + 100 * place, 48 if place == 0 else 96)).digest
        exemplars.append(
            {
                "image": image,
                "source": f"photos/{colour}-{index}-{place}.png",
                "box": [0.1, 0.2, 0.6, 0.8] if place == 0 else None,
                "activation": round(2 - place * 0.3, 3),
                "caption": f"a {colour} disc, number {place}",
                **({"view": view, "boxes": [[0.1, 0.2, 0.6, 0.8], [0.7, 0.7, 0.9, 0.9]]} if place == 0 else {}),
                "map": {"shape": [8, 8], "frame": [0, 0, 1, 1], "cells": cells(place)},
            }
        )
    candidates = []
    for row, concept in enumerate((colour, "disc")):
        drawn = [
            {"image": store.put_image(picture(colour if row == 0 else "grey", 50 + n)).digest, "activation": value}
            for n, value in enumerate((0.5 - row * 0.4, 1.5 - row, 1.0 - row * 0.9))
        ]
        score = round((0.9 - 0.7 * row) * (1 - index * 0.003), 4)
        candidates.append({"concept": concept, "score": score, "auc": 0.95 - 0.4 * row, "images": drawn})
    return {
        "layer": layer,
        "unit": index,
        "status": status,
        "labels": [] if status == "failed" else [{"concept": c["concept"], "score": c["score"]} for c in candidates],
        "reason": {
            "labelled": "",
            "failed": "captions: cannot do red",
            "uninterpretable": f"images of {colour!r} drive it little more than random ones: 0.5{index} < 0.70",
        }[status],
        "exemplars": exemplars,
        "candidates": [] if status == "failed" else candidates,
        "sample": {"n": 64, "low": 0.0, "high": 1.2, "median": 0.1, "p95": 0.6, "counts": [40, 10, 6, 4, 2, 2]},
    }


def make_run(folder: Path, records: list[dict[str, Any]], **facts: Any) -> Path:
    """Write a run folder around some records."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = 'seed = 0\n\n[target]\nname = "toy"\nlayers = ["a", "b"]\n\n[captioner]\nbackend = "blip2"\n'
    (folder / "run.toml").write_text(facts.pop("settings", settings), "utf-8")
    provenance = {
        "versions": {"dnd-describe": "0.1.0"},
        "models": {"blip2": "ab" * 32},
        "target": "cd" * 32,
        "probing": {"images": 100, "duplicates": 0, "unreadable": {"bad.png": "truncated"}},
        "seconds": 12.5,
        "stages": {"captions": {"key": "ef" * 32, "items": 9, "computed": 9, "failed": 0, "seconds": 1.5}},
        "truth": {
            "grades": [{"kind": "single", "right": 2, "total": 3}],
            "controls": {"one constant label, the best": 0.125},
            "wrong": {"a/1": "teal"},
        },
        **facts,
    }
    (folder / "run.json").write_text(json.dumps(provenance), "utf-8")
    (folder / "labels.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    (folder / "labels.csv").write_text("layer,unit,status,label,score\n", "utf-8")  # the report reads the other one
    return folder


def verified(record: dict[str, Any], word: str, because: str = "") -> dict[str, Any]:
    """A line of labels.jsonl after `dnd verify`."""
    tested = (
        [{"concept": because, "relation": "broader", "auc": 0.97, "strength": 0.5, "needed": 0.95}] if because else []
    )
    concept = record["labels"][0]["concept"]
    figures = {"images": 10, "auc": 0.91, "auc_random": 0.9, "correlation": 0.4}
    return {**record, "verdict": {"word": word, "concept": concept, "because": because, **figures, "tested": tested}}


def small_run(folder: Path, n: int = 6) -> Path:
    """Units of layers a and b: mostly labelled, number 3 uninterpretable, number 5 failed."""
    store = Store(folder.parent / ".dnd-store")
    names = ("red", "green", "blue")
    statuses = {3: "uninterpretable", 5: "failed"}
    return make_run(
        folder,
        [unit(store, "a" if i < n // 2 else "b", i, names[i % 3], statuses.get(i, "labelled")) for i in range(n)],
    )


def hostile_run(folder: Path) -> Path:
    """Every text that comes from outside tries to be something else than text."""
    store = Store(folder.parent / ".dnd-store")
    records = []
    for index, text in enumerate(HOSTILE.values()):
        record = unit(store, f"a.{HOSTILE['image']}/{HOSTILE['quote']}", index, "red")
        record["labels"][0]["concept"] = record["candidates"][0]["concept"] = text
        record["candidates"][1]["concept"] = HOSTILE["script"]
        for exemplar in record["exemplars"]:
            exemplar["caption"], exemplar["source"] = text, f"../{text}.png"
        record["dropped"] = [{"concept": text, "reason": text}]
        record = verified(record, "too narrow", text)
        records.append(record)
    records[1] |= {"status": "uninterpretable", "reason": HOSTILE["image"]}
    everything = {text: text for text in HOSTILE.values()}
    return make_run(
        folder,
        records,
        settings="[target]\n" + f"name = {json.dumps(HOSTILE['script'])}\n",
        models=everything,
        versions=everything | {"__proto__": "x"},
        probing={"images": 3, "unreadable": everything},
        truth={"grades": [{"kind": HOSTILE["image"], "right": 1, "total": 2}], "controls": {HOSTILE["image"]: 0.5}},
    )


def assert_accessible(page: Any, what: str = "") -> None:
    """axe finds nothing that hinders a reader in the open page; `what` it shows is for the message."""
    from axe_playwright_python import base as axe

    page.evaluate(axe.AXE_SCRIPT)
    found = page.evaluate("axe.run({preload: false})")
    serious = [v for v in found["violations"] if v["impact"] in ("serious", "critical", "moderate")]
    assert not serious, "\n".join(f"{what} {v['id']}: {[n['html'] for n in v['nodes'][:4]]}" for v in serious)
    assert len(found["passes"]) > 15
