"""Further planted targets: a model's senses with other units, wired when loaded (benchmarks/training/planted.py)."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from dnd_microworld.target import Planted, PlantedNet, load

NOISE_SEED = 2026
"""Of the shipped target's noise units; that of another target is this plus its seed."""


def truth_file(seed: int) -> Path:
    """The truth of planted target `seed`: as truth.csv, and a column `gain` (see `PlantedNet.plant`)."""
    return Path(__file__).parent / f"planted-{seed}.csv"


def build(weights: Path, seed: int) -> PlantedNet:
    """The net of the folder `weights`, whose senses are kept, with the units of planted target `seed`."""
    with truth_file(seed).open(newline="") as file:
        rows = list(csv.DictReader(file))
    units = [Planted(row["kind"], tuple(c for c in row["concept"].split(" | ") if c)) for row in rows]
    settings = json.loads((weights / "config.json").read_text())
    shape = {name: settings[name] for name in ("widths", "depth")}
    return PlantedNet.plant(load(weights).senses, units, [float(r["gain"]) for r in rows], shape, NOISE_SEED + seed)
