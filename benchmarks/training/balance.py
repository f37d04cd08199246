"""Balance the halves of a union over what stands for it in a run: scenes and their crops.

A crop of a shape activates a unit several times as much as the scene that it is cut from, one of a texture hardly
more, and what is far weaker than the tenth strongest is no exemplar. So the gain is sought with the pipeline's own
stage of exemplars.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.training.target import SHAPE, halves
from dnd.api import Runtime, Unit
from dnd.config.read import read_run
from dnd.pipeline.exemplars.find import find_exemplars
from dnd.plugin.registry import Registry
from dnd.store.images import Store
from dnd.target.hooked import HookedTarget
from dnd_microworld import MicroworldProbing, world
from dnd_microworld.target import Planted, PlantedNet, preprocess

DRAWS = 3
"""So many probing sets' worth of validation scenes, so that chance weighs less."""
DEPTHS = (30, 240)
"""Ranks among the validation scenes: what a run crops, the ten strongest of a third as many, and its shortlist."""
PARTS = 10


class ValidationScenes(MicroworldProbing):
    SPLIT = "validation"


def probing(kind: type[MicroworldProbing] = MicroworldProbing, **settings: int) -> MicroworldProbing:
    """The default run's scenes, or others."""
    return kind(kind.Config.model_validate(settings), Runtime("cpu", Path))


def shown(net: PlantedNet, unions: Mapping[int, Planted], scenes: MicroworldProbing) -> npt.NDArray[np.int64]:
    """(unions, 2): how many exemplars of each show each half, in the default run on `scenes`. `unions` by unit."""
    run = read_run("default", Registry.load())
    units = [Unit("concepts", index) for index in unions]
    with tempfile.TemporaryDirectory() as folder, HookedTarget(net, preprocess, run.target.layers) as hooked:
        exemplars = find_exemplars(
            hooked,
            scenes,
            units,
            run.exemplars,
            Store(Path(folder)),
            "exemplars",
            seed=run.seed,
            batch_size=run.batch_size,
            progress=lambda n: None,
            workers=1,
            pool=run.exemplars.shortlist,
        ).exemplars
    counts = []
    for unit, union in zip(units, unions.values(), strict=True):
        indices = [int(one.source.removeprefix("scene-")) for one in exemplars[unit]]
        seen = [world.concepts(world.draw_scene(scenes.SPLIT, index)) for index in indices]
        counts.append([sum(half in one for one in seen) for half in union.concepts])
    return np.array(counts)


def union_gains(net: PlantedNet, units: Sequence[Planted]) -> list[float]:
    """For each union, what to multiply its second half by, so that exemplars show both. Of the gains that give the
    second half a tenth, two tenths and so on of the strongest scenes, the one with which the half that fewer exemplars
    show is shown by most: in the worst of `DRAWS` sets of scenes, then in all, then the one in the middle."""
    gains = [1.0] * len(units)
    tried = {i: _candidates(*strengths) for i, strengths in halves(net, units).items()}
    places = [(i, gain) for i, own in tried.items() for gain in own]
    copies = {len(units) + at: units[i] for at, (i, _) in enumerate(places)}
    copied = PlantedNet.plant(net.senses, [*units, *copies.values()], [*gains, *(gain for _, gain in places)], SHAPE)
    draws = [shown(copied, copies, probing(ValidationScenes, seed=seed)).min(1) for seed in range(DRAWS)]
    worth = iter(zip(np.min(draws, 0).tolist(), np.sum(draws, 0).tolist(), strict=True))
    for i, own in tried.items():
        worths = [next(worth) for _ in own]
        best = [gain for gain, one in zip(own, worths, strict=True) if one == max(worths)]
        gains[i] = best[len(best) // 2]
        print(f"{' | '.join(units[i].concepts)}: gain {gains[i]}, rarer half {max(worths)}", flush=True)
    return gains


def _candidates(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> list[float]:
    """Gains in ascending order, as they are written, from activations with each half alone, strongest first."""
    ranks = [(depth * (PARTS - part) // PARTS, depth * part // PARTS) for depth in DEPTHS for part in range(1, PARTS)]
    strong = [(first[:one][-1], second[:other][-1]) for one, other in ranks]  # fewer scenes may have the first
    return sorted({round(float(one / other), 4) for one, other in strong if other > second[0] / 2})  # or the second
