"""`python -m benchmarks.training NAME`: run one training recipe of the shipped checkpoints."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import click

RECIPES = {
    "target": "target",
    "sharp": "sharp",
    "judge": "attributes",
    "blip2": "blip2",
    "clip": "clip",
    "llama": "llama",
    "vae": "autoencoder",
    "sdxl": "sdxl",
    "landcover": "landcover",
    "plant": "planted",
    "latents": "latents",
}
"""Subcommand -> module beside this one; each has `main(work, steps)`."""


@click.command()
@click.argument("recipe", type=click.Choice(list(RECIPES)))
@click.option("--work", type=click.Path(path_type=Path), default=Path(".train"), help="Working folder.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps instead of the recipe's own number.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads.")
def train(recipe: str, work: Path, steps: int | None, threads: int) -> None:
    """Train RECIPE; a training that was stopped goes on from its last checkpoint in --work."""
    import torch

    torch.set_num_threads(threads)
    import_module(f"benchmarks.training.{RECIPES[recipe]}").main(work, steps)


if __name__ == "__main__":
    train(prog_name="python -m benchmarks.training")
