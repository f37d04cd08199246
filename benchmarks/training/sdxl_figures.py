"""What the microworld's SDXL draws when asked, by the judge: `python -m benchmarks.training.sdxl_figures`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.training import attributes, autoencoder, common, prompts
from benchmarks.training.sdxl import NAME
from dnd import api
from dnd_microworld import world
from dnd_sdxl import SdxlConfig, SdxlGenerator


def _kinds() -> dict[str, list[str]]:
    """What is asked for. The held-out pairs occur in no training scene."""
    objects = {f"{c} {s}": (c, s) in world.HELD_OUT_OBJECTS for c in world.COLOURS for s in world.SHAPES}
    grounds = {f"{c} {t}": (c, t) in world.HELD_OUT_BACKGROUNDS for c in world.COLOURS for t in world.TEXTURES[1:]}
    return {
        "colour": list(world.COLOURS),
        "texture": list(world.TEXTURES[1:]),
        "shape": list(world.SHAPES),
        "colour_shape": [pair for pair, held_out in objects.items() if not held_out],
        "held_out_colour_shape": [pair for pair, held_out in objects.items() if held_out],
        "colour_texture": [pair for pair, held_out in grounds.items() if not held_out],
        "held_out_colour_texture": [pair for pair, held_out in grounds.items() if held_out],
    }


def figures(
    work: Path, folder: Path, per_kind: int, *, steps: int, guidance: float, scheduler: str = "default"
) -> dict[str, float]:
    """Share of about `per_kind` images of each kind in which the judge finds what was asked for.

    `..._shuffled` is the same for what other images of that kind were asked for: what chance alone gives.
    """
    settings = {"model": NAME, "prompt": prompts.TEMPLATE, "steps": steps, "guidance": guidance, "scheduler": scheduler}
    found: dict[str, float] = {}
    with SdxlGenerator(SdxlConfig.model_validate(settings), api.Runtime("cpu", lambda name: folder)) as generator:
        for kind, asked in _kinds().items():
            each = max(1, round(per_kind / len(asked)))
            requests = [api.ImageRequest(concept, 1000 * i + k) for i, concept in enumerate(asked) for k in range(each)]
            images = np.stack([np.asarray(image) for image in generator.generate(requests)])
            said = attributes.judge(images, work / attributes.JUDGE_FILE)
            there = np.stack([said[concept] for concept in asked], 1) > 0.5  # (images, concepts)
            own = np.repeat(np.eye(len(asked), dtype=bool), each, 0)
            found[kind], found[f"{kind}_shuffled"] = float(there[own].mean()), float(there[~own].mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".train"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--per-kind", type=int, default=150)
    asked = parser.parse_args()
    measured = figures(asked.work, common.WEIGHTS / NAME, asked.per_kind, steps=asked.steps, guidance=asked.guidance)
    measured["psnr"] = autoencoder.psnr(autoencoder.load(asked.work))
    common.write_figures(NAME, {**measured, "steps": asked.steps, "guidance": asked.guidance})


if __name__ == "__main__":
    main()
