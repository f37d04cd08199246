"""Plant other units over a target's senses: the same kinds and numbers as the shipped one has, but other concepts.

Labels' confidence is fitted and checked on seeds 1 to 3 (docs/evaluate.md), because thresholds were chosen on the
shipped units. The concepts of a seed do not hang on what else is planted: no two seeds share a noise unit, no two of
the first nine a union, and no two of the first three a conjunction, with each other or with the shipped target. There
are only 21 single attributes, so every target has them all, and from seed 4 on there are conjunctions of the first
three in other company. From seed 7 on the senses are the sharper ones (benchmarks/training/sharp.py), and from 11 on
the halves of unions are balanced over crops as well (benchmarks/training/balance.py).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.training import balance, common
from benchmarks.training.target import CONJUNCTIONS, NOISE, SEED, SHAPE, UNIONS, measure, union_gains
from dnd_microworld import LAST_SEED, target_model, world
from dnd_microworld.planted import NOISE_SEED, build, truth_file
from dnd_microworld.target import ATTRIBUTES, Planted, PlantedNet, load

UNION_SETS = 9
"""There are 42 pairs of a texture and a shape, and a target has four."""
FIRST_BALANCED = 11


def conjunctions(seed: int) -> list[str]:
    """As many coloured shapes and coloured textures as the shipped target has, none of them its own."""
    found: list[str] = []
    for second in (world.SHAPES, world.TEXTURES[1:]):
        those = [f"{colour} {other}" for colour, other in product(world.COLOURS, second)]
        count = sum(name in CONJUNCTIONS for name in those)
        free = [name for name in those if name not in CONJUNCTIONS]
        lap, place = divmod(seed - 1, len(free) // count)
        order = np.random.default_rng([SEED, lap] if lap else SEED).permutation(len(free))
        found += [free[i] for i in order[place * count : (place + 1) * count]]
    return found


def unions(seed: int) -> list[tuple[str, str]]:
    """As many of each pair of categories as the shipped target has, the half that fills more of a picture first."""
    lap, place = divmod(seed - 1, UNION_SETS)
    drawn = _draw_unions(lap)
    taken = [next(drawn) for _ in range((place + 1) * len(UNIONS))]
    return taken[-len(UNIONS) :]


def _draw_unions(lap: int) -> Iterator[tuple[str, str]]:
    """None twice, none of the shipped target's, no word in both halves."""
    rng = np.random.default_rng([SEED, lap] if lap else SEED)
    names = [*ATTRIBUTES, *(f"{c} {x}" for c, x in product(world.COLOURS, (*world.SHAPES, *world.TEXTURES[1:])))]
    of = {kind: [name for name in names if world.category(name) == kind] for kind in world.CATEGORIES}
    used = set(UNIONS)
    while True:
        for shipped in UNIONS:
            pair = shipped
            while pair in used or set(pair[0].split()) & set(pair[1].split()):
                first, second = (str(rng.choice(of[world.category(half)])) for half in shipped)
                pair = (first, second)
            used.add(pair)
            yield pair


def units(seed: int) -> list[Planted]:
    """The units of planted target `seed` in their order, which is shuffled."""
    found = [Planted("single", (name,)) for name in ATTRIBUTES]
    found += [Planted("conjunction", (name,)) for name in conjunctions(seed)]
    found += [Planted("union", pair) for pair in unions(seed)]
    found += [Planted("noise", ())] * NOISE
    return [found[i] for i in np.random.default_rng([SEED, seed]).permutation(len(found))]


def plant(seed: int) -> None:
    """Write the units of planted target `seed` with the gains of its unions, and print how well they answer."""
    wanted, weights = units(seed), common.WEIGHTS / target_model(seed)
    senses = load(weights).senses
    net = PlantedNet.plant(senses, wanted, [1.0] * len(wanted), SHAPE, NOISE_SEED + seed)
    gains = (balance.union_gains if seed >= FIRST_BALANCED else union_gains)(net, wanted)
    with truth_file(seed).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("layer", "unit", "kind", "concept", "gain"))
        writer.writerows(
            ("concepts", i, unit.kind, " | ".join(unit.concepts), round(gains[i], 4)) for i, unit in enumerate(wanted)
        )
    built = build(weights, seed)
    for figure, value in measure(built, wanted).items():
        print(f"planted-{seed}, {figure}: {value:.4f}", flush=True)
    unions = {i: unit for i, unit in enumerate(wanted) if unit.kind == "union"}
    rarer = Counter(balance.shown(built, unions, balance.probing()).min(1).tolist())
    print(f"planted-{seed}, unions by exemplars of the rarer half: {sorted(rarer.items())}", flush=True)


def main(work: Path, steps: int | None = None) -> None:
    """Nothing is trained: `work` and `steps` are not used."""
    for seed in range(1, LAST_SEED + 1):
        plant(seed)
