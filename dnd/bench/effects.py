"""Main effects: what one variant of an axis gives more than another, over all that the other axes were set to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dnd.bench.repeats import difference
from dnd.evaluation.intervals import Estimate, Floats, holm


@dataclass(frozen=True)
class Effect:
    axis: str
    variant: str
    base: str
    """The variant that it is compared with."""
    combinations: int
    """Settings of the other axes that both were run with."""
    mean: float
    """Of the metric with the variant, over those."""
    base_mean: float
    estimate: Estimate
    """The mean of variant - base, paired by unit, seed and setting of the other axes."""
    p: float
    """Of no difference, corrected for how many effects there are."""


def effects(
    values: Mapping[str, Floats], variants: Mapping[str, Mapping[str, str]], reference: Mapping[str, str]
) -> list[Effect]:
    """`values` are (n_units, n_seeds) by combination, rows and columns the same in all; `variants` are what axes the
    combinations have. An axis's variants are compared with that of the reference, or with its first."""
    axes: dict[str, list[str]] = {}
    for name in values:
        for axis, variant in variants[name].items():
            axes.setdefault(axis, [])
            if variant not in axes[axis]:
                axes[axis].append(variant)
    found = []
    for axis, own in axes.items():
        base = reference.get(axis, own[0])
        base = base if base in own else own[0]
        found += [one for variant in own if variant != base and (one := _effect(values, variants, axis, variant, base))]
    corrected = holm([one.p for one in found])
    return [Effect(**{**vars(one), "p": p}) for one, p in zip(found, corrected, strict=True)]


def _effect(
    values: Mapping[str, Floats], variants: Mapping[str, Mapping[str, str]], axis: str, variant: str, base: str
) -> Effect | None:
    """Not yet corrected; None where no two combinations differ by it alone."""
    at: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for name in values:
        if axis in variants[name]:
            rest = tuple(sorted((a, v) for a, v in variants[name].items() if a != axis))
            at.setdefault(rest, {})[variants[name][axis]] = name
    pairs = [(found[variant], found[base]) for found in at.values() if variant in found and base in found]
    if not pairs:
        return None
    one, other = (np.mean([values[pair[side]] for pair in pairs], axis=0) for side in (0, 1))
    estimate, p = difference(one, other)
    means = [float(np.nanmean(side)) if not np.isnan(side).all() else np.nan for side in (one, other)]
    return Effect(axis, variant, base, len(pairs), means[0], means[1], estimate, p)
