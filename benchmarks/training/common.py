"""What every training recipe shares: a seeded loop that can be stopped and resumed, and the figures file."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dnd_microworld import HERE

WEIGHTS = HERE / "weights"
"""Where the shipped checkpoints live, one folder each."""
FIGURES = HERE / "figures.json"
"""Held-out figures of every shipped checkpoint: {model: {figure: value}}."""


def fit(
    model: nn.Module,
    loss_of: Callable[[int], tuple[torch.Tensor, Mapping[str, float]]],
    *,
    steps: int,
    lr: float,
    work: Path,
    name: str,
    seed: int,
    warmup: int = 200,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.99),
    clip: float = 1.0,
    ema: float | None = None,
    log_every: int = 100,
    save_seconds: float = 60.0,
) -> nn.Module:
    """AdamW with warm-up and a cosine to 2 % of `lr`; the checkpoint `work/name.pt` is written every minute.

    `loss_of(step)` gives the loss and figures to print; it must draw its data from `step` alone, so that a
    resumed training sees what an unbroken one would. With `ema`, the running mean of the weights is what
    `model` holds at the end. Returns `model`, in eval mode.
    """
    work.mkdir(parents=True, exist_ok=True)
    path, mean = work / f"{name}.pt", None
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=betas, weight_decay=weight_decay
    )
    if ema is not None:
        mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(ema))
    start = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        if mean is not None:
            mean.load_state_dict(state["mean"])
        print(f"{name}: resumed at step {start}", flush=True)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        if mean is not None:
            state["mean"] = mean.state_dict()
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    model.train()
    saved = began = time.monotonic()
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        scale = min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        loss, figures = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if mean is not None:
            mean.update_parameters(model)
        if (step + 1) % log_every == 0:
            rate = (step + 1 - start) / (time.monotonic() - began)
            words = "  ".join(f"{k} {v:.4f}" for k, v in figures.items())
            print(f"{name} {step + 1}/{steps}  loss {loss.item():.4f}  {words}  {rate:.2f} steps/s", flush=True)
        if time.monotonic() - saved > save_seconds:
            save(step + 1)
            saved = time.monotonic()
    if start < steps:
        save(steps)
    if mean is not None:
        model.load_state_dict(mean.module.state_dict())
    return model.eval()


def to_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def write_figures(model: str, figures: Mapping[str, float]) -> None:
    """Record held-out figures beside the checkpoints, and print them."""
    everything = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    everything[model] = {k: round(float(v), 4) for k, v in figures.items()}
    FIGURES.write_text(json.dumps(dict(sorted(everything.items())), indent=1) + "\n")
    for key, value in everything[model].items():
        print(f"{model}: {key} = {value}", flush=True)
