"""The picture in the README: some units of a finished run, exemplars on the left, images of the label on the right.

python benchmarks/picture.py runs/demo docs/units.png --units 4,7,1,14
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dnd.config.units import parse_units
from dnd.store.images import Store

SIDE, GAP, SHOWN, HEAD = 72, 4, 6, 26
INK, PAPER, FAINT = (30, 30, 30), (255, 255, 255), (120, 120, 120)


def row(store: Store, line: dict[str, Any]) -> Image.Image:
    """One unit: its label, its first exemplars, and the first synthetic images of its best candidate."""
    width = (2 * SHOWN + 1) * (SIDE + GAP)
    canvas = Image.new("RGB", (width, HEAD + SIDE + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(15)
    best = line["labels"][0]["concept"] if line["labels"] else None
    name = f"“{best}”" if line["status"] == "labelled" else f"({line['status']})"
    also = ", ".join(label["concept"] for label in line["labels"][1:])
    draw.text((GAP, 4), f"unit {line['unit']}: {name}", INK, font)
    if also and line["status"] == "labelled":
        draw.text((260, 4), f"then: {also}", FAINT, font)
    digests = [exemplar["image"] for exemplar in line["exemplars"][:SHOWN]]
    synthetic = next((c["images"] for c in line["candidates"] if c["concept"] == best), [])
    digests += [None] * (SHOWN + 1 - len(digests)) + [image["image"] for image in synthetic[:SHOWN]]
    for place, digest in enumerate(digests):
        if digest:
            image = store.picture(digest).open().resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            canvas.paste(image, (place * (SIDE + GAP) + GAP, HEAD))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--units", default="0-5")
    options = parser.parse_args()
    lines = {line["unit"]: line for line in map(json.loads, (options.run / "labels.jsonl").read_text().splitlines())}
    store = Store(options.run.parent / ".dnd-store")
    rows = [row(store, lines[unit]) for unit in parse_units(options.units)]
    whole = Image.new("RGB", (rows[0].width, sum(r.height for r in rows)), PAPER)
    for number, one in enumerate(rows):
        whole.paste(one, (0, number * one.height))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    whole.quantize(256).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
