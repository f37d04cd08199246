"""How well the presence of a concept on images agrees with a unit's activation there.

Every function takes presence (..., n) of 0 and 1 and activation (..., n), which broadcast, and weights (n,), and
gives one number for each leading index. `precision` to `iou` need to know on which images the unit is active: on the
share of images that shows the concept, the unit's strongest (see `active`).

Directions: in `auc` and `auprc` the activation is the score and the presence the class, as in CoSy and INVERT;
in `auc_of_presence` the other way round.
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


def f1(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    both, shown, on = _overlap(presence, activation, weights)
    return _ratio(2 * both, shown + on)


def iou(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    both, shown, on = _overlap(presence, activation, weights)
    return _ratio(both, shown + on - both)


def correlation(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """Pearson's; -1..1, 0 where either does not vary."""
    share = weights / weights.sum()
    x = presence - (presence * share).sum(-1, keepdims=True)
    y = activation - (activation * share).sum(-1, keepdims=True)
    size = np.sqrt((x * x * share).sum(-1) * (y * y * share).sum(-1))
    return _ratio((x * y * share).sum(-1), size)


def cosine(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """-1..1, of the activations as they are."""
    size = np.sqrt((presence**2 * weights).sum(-1) * (activation**2 * weights).sum(-1))
    return _ratio((presence * activation * weights).sum(-1), size)


def auc(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """The chance that an image with the concept moves the unit more than one without; ties count half."""
    hits, misses = _curve(presence, activation, weights)
    return np.asarray((np.diff(misses, axis=-1) * (hits[..., 1:] + hits[..., :-1])).sum(-1) / 2)


def auc_of_presence(presence: Floats, activation: Floats, weights: Floats) -> Floats:
    """The chance that an image on which the unit is active shows the concept rather than one on which it is not."""
    return auc(active(presence, activation, weights), presence, weights)


def auprc(presence: Floats, activation: Floats, weights: Floats) -> Floats:
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


METRICS: Mapping[str, Metric] = {
    "recall": recall,
    "precision": precision,
    "accuracy": accuracy,
    "f1": f1,
    "iou": iou,
    "correlation": correlation,
    "cosine": cosine,
    "auprc": auprc,
    "auc": auc,
    "auc_of_presence": auc_of_presence,
    "mad": _mad_in_set,
}


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
