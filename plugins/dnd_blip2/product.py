"""One text for several images: at every token, the product of the distributions that they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor


class Product(LogitsProcessor):
    """For a batch of `texts` times `n_images` rows, each text's rows together: leaves one token possible, the same for
    all rows of a text. Chance comes from the seeds alone."""

    def __init__(self, n_images: int, seeds: Sequence[int | None], temperature: float, steps: int) -> None:
        """A seed per text; None takes the likeliest token each time."""
        self.n_images, self.temperature, self.step = n_images, temperature, 0
        sources = [torch.Generator().manual_seed(seed or 0) for seed in seeds]
        # (texts, steps): uniform numbers, one for each token
        self.uniform = torch.stack([torch.rand(steps + 1, generator=one, dtype=torch.float64) for one in sources])
        self.drawn = torch.tensor([seed is not None for seed in seeds])[:, None]

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        """scores: (texts * n_images, vocabulary)."""
        width = scores.shape[-1]
        together = scores.double().log_softmax(-1).reshape(-1, self.n_images, width).mean(1)  # (texts, vocabulary)
        likeliest = together.argmax(-1, keepdim=True)
        shares = (together / self.temperature).softmax(-1).cumsum(-1)
        threshold = self.uniform[:, self.step, None].to(scores.device) * shares[:, -1:]
        drawn = torch.searchsorted(shares, threshold, right=True).clamp(max=width - 1)
        token = torch.where(self.drawn.to(scores.device), drawn, likeliest).repeat_interleave(self.n_images, 0)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
