"""BERTScore (Zhang et al., 2020) over a local encoder's token embeddings.

Each token of one text is matched with its nearest token in the other; the mean cosine over the truth's tokens is
the recall, over the label's tokens the precision, and F1 their harmonic mean. Raw scores of unrelated texts are far
from 0, so the rescaled score is (F1 - b) / (1 - b), where b is the mean F1 of unrelated texts: all pairs of the 120
descriptions in phrases.txt, written for this purpose, measured with the encoder in use.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dnd.models.encoder import Encoded, Encoder, Floats

_AT_ONCE = 16_000_000
"""Token pairs in memory."""


def bertscore_f1(truths: Encoded, labels: Encoded) -> Floats:
    """(n_truths, n_labels) of F1."""
    n, ends = len(truths.starts), np.append(truths.starts[1:], len(truths.tokens))
    lengths = np.diff(np.append(labels.starts, len(labels.tokens)))
    step = max(1, int(_AT_ONCE / max(1, len(labels.tokens)) / max(1, len(truths.tokens) / n)))
    parts = []
    for at in range(0, n, step):
        last = min(n, at + step)
        starts = truths.starts[at:last] - truths.starts[at]
        cosines = truths.tokens[truths.starts[at] : ends[last - 1]] @ labels.tokens.T
        nearest_label = np.maximum.reduceat(cosines, labels.starts, axis=1)  # (truth tokens, labels)
        recall = np.add.reduceat(nearest_label, starts, axis=0) / (ends[at:last] - truths.starts[at:last])[:, None]
        nearest_truth = np.maximum.reduceat(cosines, starts, axis=0)  # (truths, label tokens)
        precision = np.add.reduceat(nearest_truth, labels.starts, axis=1) / lengths
        both = recall + precision
        parts.append(np.divide(2 * recall * precision, both, out=np.zeros_like(both), where=both > 0))
    return np.concatenate(parts).astype(np.float32)


def rescale(f1: Floats, baseline: float) -> Floats:
    """0 for what unrelated texts get, 1 for equal ones."""
    return np.asarray((f1 - baseline) / (1 - baseline), np.float32)


def unrelated_f1(encoder: Encoder) -> float:
    """The baseline b of an encoder: the mean F1 over all pairs of different phrases in phrases.txt."""
    encoded = encoder.encode(phrases())
    scores = bertscore_f1(encoded, encoded)
    return float(scores[~np.eye(len(scores), dtype=bool)].mean())


def phrases() -> list[str]:
    """Short descriptions of unrelated things to see, one a line in phrases.txt."""
    text = (Path(__file__).parent / "phrases.txt").read_text("utf-8")
    return [line for line in text.splitlines() if line]
