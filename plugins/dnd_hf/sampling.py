"""Sampling whose tokens come from seeds alone: not from the batch around a row, nor from the device's generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor


class SeededSampler(LogitsProcessor):
    """Samples by the inverse of the cumulative distribution, from uniform numbers that each text's seed gives. It
    leaves the sampled token as the only possible one, so that greedy generation takes it.

    With `together` above 1, so many successive rows of a batch are one text: at every token the product of their
    distributions (the mean of the log-probabilities, a product of experts) decides for all of them.
    """

    def __init__(self, seeds: Sequence[int], temperatures: Sequence[float], steps: int, *, together: int = 1) -> None:
        """A seed and a temperature per text; 0 takes the likeliest token each time. `steps`: tokens at most."""
        sources = [torch.Generator().manual_seed(seed) for seed in seeds]
        # (texts, steps): uniform numbers, one for each token
        self.uniform = torch.stack([torch.rand(steps, generator=one, dtype=torch.float64) for one in sources])
        self.temperature = torch.tensor(temperatures, dtype=torch.float64)[:, None]
        self.together, self.step = together, 0

    def __call__(self, input_ids: Any, scores: torch.Tensor) -> torch.Tensor:
        """scores: (texts * together, vocabulary)."""
        width = scores.shape[-1]
        joint = scores
        if self.together > 1:
            joint = scores.double().log_softmax(-1).reshape(-1, self.together, width).mean(1)
        temperature = self.temperature.to(scores.device)
        likeliest = joint.argmax(-1, keepdim=True)
        shares = (joint.double() / temperature.clamp(min=1e-4)).softmax(-1).cumsum(-1)
        threshold = self.uniform[:, self.step, None].to(scores.device) * shares[:, -1:]
        sampled = torch.searchsorted(shares, threshold, right=True).clamp(max=width - 1)
        token = torch.where(temperature > 0, sampled, likeliest).repeat_interleave(self.together, 0)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)
