"""How often a unit gets a label, by what its candidates' images are compared with: a simulation.

    python benchmarks/controls.py [--out benchmarks/results/controls.json]

A unit's activations are normal. Every synthetic image is shifted, by so many standard deviations, merely for being
synthetic, and every concept moves the unit a little (`spread`). That is all that moves a noise unit; the images of the
first of another unit's five candidates are moved by `effect`, as are those of some labels of other units (`alike`). The
best of five candidates by AUC must reach 0.7: against 512 random probing images, and against 10 images of each of 32
labels, all together or the median over these. The last column asks for 0.8 of both.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from dnd.api import auc
from dnd.pipeline.controls import MOST, control_auc

CANDIDATES, IMAGES, SAMPLE, LEAST, STRICT = 5, 10, 512, 0.7, 0.8


def simulate(shift: float, spread: float, effect: float, alike: float, units: int) -> dict[str, float]:
    """Share of units with a label, by the comparison."""
    rng = np.random.default_rng(0)
    labelled = dict.fromkeys(("random", "random and all", "random and median", "the same, 0.8"), 0)
    for _ in range(units):
        probing = rng.normal(size=SAMPLE).astype(np.float32)
        images = rng.normal(size=(CANDIDATES, IMAGES)) + shift + spread * rng.normal(size=(CANDIDATES, 1))
        images[0] += effect
        others = rng.normal(size=(MOST, IMAGES)) + shift + spread * rng.normal(size=(MOST, 1))
        others[rng.random(MOST) < alike] += effect
        aucs = [auc(row, probing) for row in images.astype(np.float32)]
        best, controls = images[int(np.argmax(aucs))].astype(np.float32), others.astype(np.float32)
        labelled["random"] += max(aucs) >= LEAST
        labelled["random and all"] += min(max(aucs), auc(best, controls.ravel())) >= LEAST
        lower = min(max(aucs), control_auc(best, controls))
        labelled["random and median"] += lower >= LEAST
        labelled["the same, 0.8"] += lower >= STRICT
    return {name: round(n / units, 3) for name, n in labelled.items()}


def measure(units: int) -> list[dict[str, float]]:
    noise = [(shift, spread, 0.0, 0.0) for shift, spread in itertools.product((0.0, 0.25, 0.5, 1.0), (0.0, 0.25))]
    real = [(0.5, 0.25, effect, alike) for effect, alike in itertools.product((1.0, 1.5, 2.0), (0.0, 0.1, 0.2, 0.4))]
    rows = []
    for shift, spread, effect, alike in noise + real:
        rows.append(
            {"shift": shift, "spread": spread, "effect": effect, "alike": alike}
            | simulate(shift, spread, effect, alike, units)
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1000, help="simulated units of each kind")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "controls.json")
    options = parser.parse_args()
    report = {"units": options.units, "rows": measure(options.units)}
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
