"""Scenes of the microworld's probing set as image files, for the generator `retrieval` in benchmarks/matrix.toml.

    python benchmarks/scenes.py [FOLDER] [--count 400]

Evenly spaced over the set, so that they are the same ones every time. The default folder is runs/scenes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dnd import api
from dnd.config.read import read_run
from dnd.models.weights import Weights
from dnd.pipeline.build import Builder
from dnd.plugin.registry import Registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/scenes"))
    parser.add_argument("--count", type=int, default=400)
    options = parser.parse_args()
    registry = Registry.load()
    choice = read_run("default", registry).probing[0]
    probing = Builder(registry, api.Runtime("cpu", Weights.default().resolve)).probing([choice])
    options.folder.mkdir(parents=True, exist_ok=True)
    for number in range(options.count):
        index = number * len(probing) // options.count
        probing.open(index).save(options.folder / f"{index:06}.png")
    print(f"{options.count} of {len(probing)} scenes are in {options.folder}")


if __name__ == "__main__":
    main()
