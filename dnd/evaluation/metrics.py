"""How well the presence of a concept on images agrees with a unit's activation there.

Every function takes presence (..., n) of 0 and 1 and activation (..., n), which broadcast, and weights (n,), and
gives one number for each leading index. `precision` to `iou` need to know on which images the unit is active: on the
share of images that shows the concept, the unit's strongest (see `active`).

Names are those of Oikarinen, Yan and Weng (2025), all eighteen. In `auc`, `auprc` and `balanced_accuracy` the unit's
being active is the class and the presence predicts it; in their inverses the other way round, as in CoSy and INVERT:
the activation is the score and the presence the class. `mad` is in standard deviations. What is drawn by chance there
has its expectation here: the order of equal ranks, and the images of "top and random".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Metric = Callable[[Floats, Floats, Floats], Floats]


def active(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """1 where the activation reaches the level that as large a share of images reaches as shows the concept.

    An activation at its lowest is never active, so that a unit that is either on or off keeps its own share.
    """
    presence, activation = np.broadcast_arrays(presence, activation)
    order = np.argsort(-activation, axis=-1, kind="stable")
    running = np.cumsum(weights[order], axis=-1)
    share = (presence * weights).sum(-1, keepdims=True)
    last = (running < share * (1 - 1e-9)).sum(-1, keepdims=True).clip(max=activation.shape[-1] - 1)
    level = np.take_along_axis(activation, np.take_along_axis(order, last, -1), -1)
    return np.asarray((activation >= level) & (activation > activation.min(-1, keepdims=True)), np.float64)


def _overlap(presence: Floats, activation: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    on = active(presence, activation, weights)
    return (presence * on * weights).sum(-1), (presence * weights).sum(-1), (on * weights).sum(-1)


def recall(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Of the images on which the unit is active, the share that shows the concept."""
    both, _, on = _overlap(presence, activation, weights)
    return _ratio(both, on)


def precision(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Of the images that show the concept, the share on which the unit is active."""
    both, shown, _ = _overlap(presence, activation, weights)
    return _ratio(both, shown)


def accuracy(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    both, shown, on = _overlap(presence, activation, weights)
    return np.asarray(1 - (shown + on - 2 * both) / weights.sum())


def balanced_accuracy(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Mean of two shares: of the images on which the unit is active, those with the concept, and of the others, those
    without."""
    both, shown, on = _overlap(presence, activation, weights)
    whole = weights.sum()
    return np.asarray((_ratio(both, on) + _ratio(whole - shown - on + both, whole - on)) / 2)


def inverse_balanced_accuracy(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Mean of two shares: of the images with the concept, those on which the unit is active, and of the others, those
    on which it is not."""
    both, shown, on = _overlap(presence, activation, weights)
    whole = weights.sum()
    return np.asarray((_ratio(both, shown) + _ratio(whole - shown - on + both, whole - shown)) / 2)


def f1(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    both, shown, on = _overlap(presence, activation, weights)
    return _ratio(2 * both, shown + on)


def iou(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    both, shown, on = _overlap(presence, activation, weights)
    return _ratio(both, shown + on - both)


def correlation(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Pearson's; -1..1, 0 where either does not vary."""
    share = weights / weights.sum(-1, keepdims=True)
    x = presence - (presence * share).sum(-1, keepdims=True)
    y = activation - (activation * share).sum(-1, keepdims=True)
    size = np.sqrt((x * x * share).sum(-1) * (y * y * share).sum(-1))
    return _ratio((x * y * share).sum(-1), size)


def correlation_top_and_random(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """`correlation` where half the images are among those on which the unit is active, and half any."""
    return correlation(presence, activation, _top_and_random(presence, activation, weights))


def spearman(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Correlation of ranks; equal ones are ordered by chance, so that of a rare concept it stays near 0."""
    x, y = _ranks(presence, weights), _ranks(activation, weights)
    share = weights / weights.sum(-1, keepdims=True)
    return np.asarray(12 * ((x - 0.5) * (y - 0.5) * share).sum(-1))


def spearman_top_and_random(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """`spearman` where half the images are among those on which the unit is active, and half any."""
    return spearman(presence, activation, _top_and_random(presence, activation, weights))


def cosine(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """-1..1, of the activations as they are."""
    size = np.sqrt((presence**2 * weights).sum(-1) * (activation**2 * weights).sum(-1))
    return _ratio((presence * activation * weights).sum(-1), size)


def inverse_auc(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """CoSy's AUC: the chance that an image with the concept moves the unit more than one without; ties count half."""
    hits, misses = _curve(presence, activation, weights)
    return np.asarray((np.diff(misses, axis=-1) * (hits[..., 1:] + hits[..., :-1])).sum(-1) / 2)


def auc(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """The chance that an image on which the unit is active shows the concept rather than one on which it is not."""
    return inverse_auc(active(presence, activation, weights), presence, weights)


def auprc(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Average precision of the presence, which ranks the images, for the unit's being active."""
    return inverse_auprc(active(presence, activation, weights), presence, weights)


def inverse_auprc(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Average precision: the area under precision over recall, by steps, of images ranked by activation."""
    shown = (presence * weights).sum(-1, keepdims=True)
    hidden = ((1 - presence) * weights).sum(-1, keepdims=True)
    hits, misses = _curve(presence, activation, weights)
    right, wrong = hits[..., 1:] * shown, misses[..., 1:] * hidden
    return np.asarray((np.diff(hits, axis=-1) * _ratio(right, right + wrong)).sum(-1))


def mad(shown: Floats, control: Floats) -> Floats:
    """CoSy's mean activation difference, (..., n) on images of a concept against (m,) on random images.

    The difference of the means in standard deviations of the random ones; 0 where those do not vary.
    """
    return _ratio(shown.mean(-1) - control.mean(), control.std())


def _mad_in_set(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """`mad` where the random images are all images, as many of them show the concept as they may."""
    return mad(activation[presence > 0], activation)


def wpmi(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Mean log presence on the images on which the unit is active, minus the log of the mean presence; presence is at
    least 1e-8."""
    on = active(presence, activation, weights) * weights
    given = _ratio((on * np.log(np.maximum(presence, 1e-8))).sum(-1), on.sum(-1))
    return np.asarray(given - np.log(np.maximum((presence * weights).sum(-1) / weights.sum(), 1e-8)))


METRICS: Mapping[str, Metric] = {
    "recall": recall,
    "precision": precision,
    "f1": f1,
    "iou": iou,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "inverse_balanced_accuracy": inverse_balanced_accuracy,
    "auc": auc,
    "inverse_auc": inverse_auc,
    "correlation": correlation,
    "correlation_top_and_random": correlation_top_and_random,
    "spearman": spearman,
    "spearman_top_and_random": spearman_top_and_random,
    "cosine": cosine,
    "wpmi": wpmi,
    "mad": _mad_in_set,
    "auprc": auprc,
    "inverse_auprc": inverse_auprc,
}


def _top_and_random(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """(..., n): half the weight on the images on which the unit is active, half as it was."""
    on = active(presence, activation, weights) * weights
    return np.asarray(_ratio(on, on.sum(-1, keepdims=True)) / 2 + weights / weights.sum() / 2)


def _ranks(values: Floats, weights: Floats) -> Floats:
    """(..., n) in 0..1: the share of the weight below a value, and half of that at it."""
    values, weights = np.broadcast_arrays(values, weights)
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, -1)
    running = np.cumsum(np.take_along_axis(weights, order, -1), axis=-1)
    n = values.shape[-1]
    ends = np.where(np.diff(ordered, axis=-1, append=np.inf) != 0, np.arange(n), n)
    ends = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    upto = np.take_along_axis(running, ends, -1)
    starts = np.where(np.diff(ordered, axis=-1, prepend=-np.inf) != 0, np.arange(n), 0)
    starts = np.maximum.accumulate(starts, axis=-1)
    before = np.take_along_axis(np.concatenate([np.zeros((*running.shape[:-1], 1)), running], -1), starts, -1)
    middle = (before + upto) / 2 / running[..., -1:]
    found = np.empty(values.shape)
    np.put_along_axis(found, order, middle, -1)
    return found


def _curve(presence: Floats, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Shares of the images with and without the concept down to each level of the score, 0 to 1; ties in one step."""
    presence, score = np.broadcast_arrays(presence, score)
    order = np.argsort(-score, axis=-1, kind="stable")
    ordered = np.take_along_axis(score, order, -1)
    shown = np.take_along_axis(presence * weights, order, -1)
    hidden = np.take_along_axis((1 - presence) * weights, order, -1)
    # Within a run of equal scores every place takes the totals at the run's end.
    n = score.shape[-1]
    ends = np.where(np.diff(ordered, axis=-1, append=-np.inf) != 0, np.arange(n), n)
    ends = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    found = []
    for part in (shown, hidden):
        running = np.take_along_axis(np.cumsum(part, axis=-1), ends, -1)
        total = running[..., -1:]
        shares = np.divide(running, total, out=np.zeros_like(running), where=total > 0)
        found.append(np.concatenate([np.zeros((*shares.shape[:-1], 1)), shares], axis=-1))
    return found[0], found[1]


def _ratio(top: Floats, bottom: Floats) -> Floats:
    """0 where the lower number is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
