"""Image files of every kind and name, and a whole run on them by the command line."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image

import dnd.cli.main

NAMES = (
    "two\nlines.png",
    "<img src=x onerror=alert(1)>.png",
    "red \U0001f98a ✓.png",
    "x" * 251 + ".png",
    "--out.png",
    "[bold red].png",
    "a,b;c'd\"e.png",
    "ab\u202egnp.png",
    "\"'><svg onload=alert(4)>.png",
    "${alert(5)} {{7*7}} __proto__.png",
    "javascript:alert(6).png",
    "C:..\\..\\%2e%2e%2fpasswd.png",
    "line\u2028paragraph\u2029.png",
    "\x1b]0;title\x07\x1b[2J.png",
    "&lt;b&gt; | `x` _y_ $z$ \\end{longtable}.png",
    "<script>alert(2)</script>.png",
)


def png_of(width: int, height: int) -> bytes:
    """A whole PNG in a few bytes, however many pixels it has: its rows are all alike."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def make_corpus(folder: Path) -> set[str]:
    """Good and bad images; the names of those that cannot be read."""
    toys.make_photos(folder, 12)
    red = toys.flat("red", 100, 40)
    red.save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    bad = {
        "cut-short.jpg": whole[: len(whole) // 2],
        "cut-short.png": (folder / "000.png").read_bytes()[:44],
        "empty.png": b"",
        "zeros.png": bytes(1000),
        "text.jpg": b"not an image\n",
        "bomb.png": png_of(30_000, 5_000),
        "header-only-bomb.png": png_of(8, 1)[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png_of(8, 1)[24:],
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "wide.png").write_bytes(png_of(30_000, 8))
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    red.save(folder / "animated.gif", save_all=True, append_images=[toys.flat("blue", 1, 40)])
    red.save(folder / "animated.webp", save_all=True, append_images=[toys.flat("blue", 1, 40)])
    toys.flat("red", 102, 40).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(folder / "sixteen.png")
    palette = red.quantize(4)
    palette.info["transparency"] = 0
    palette.save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    toys.flat("green", 7, 30).resize((30, 10)).save(folder / "rotated.jpg", exif=exif)
    red.save(folder / "wrong.jpg", "PNG")
    for number, name in enumerate(NAMES):
        toys.flat("blue", 200 + number).save(folder / "name.png")
        (folder / name).parent.mkdir(exist_ok=True)
        os.rename(folder / "name.png", folder / name)  # noqa: PTH104
    toys.flat("blue", 300).save(folder / "name.png")
    os.rename(os.fsencode(folder / "name.png"), os.fsencode(folder) + b"/bytes-\xff\xfe.png")  # noqa: PTH104
    return set(bad)


def target() -> tuple[torch.nn.Module, Any]:
    return toys.Net(), toys.preprocess


def run_corpus(folder: Path) -> tuple[Path, set[str]]:
    """`dnd run` on the corpus, every image an exemplar of some unit: the run's folder, and the unreadable names."""
    bad = make_corpus(folder / "photos")
    backends = [word for kind in ("captioner", "summarizer", "generator", "scorer") for word in (f"--{kind}", "toy")]
    given: dict[str, object] = {"exemplars.k": 60, "exemplars.sample": 20, "images.n": 4, "labels.min_auc": 0.5}
    given["captioner.suffix"] = "<script>alert(3)</script>"
    settings = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    where = ["--target", "corpus:target", "--layer", "units", "--probe", str(folder / "photos"), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dnd.plugin.registry.Registry.load", toys.registry)
        patch.delenv("DND_STORE", raising=False)
        with pytest.raises(SystemExit, match=r"^0$"):
            dnd.cli.main.main(["run", "full", *where, *backends, *settings, "--out", str(folder / "run")])
    return folder / "run", bad
