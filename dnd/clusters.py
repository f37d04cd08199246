"""A unit that responds to several things: its exemplars in groups, each summarised by itself, and labels of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def clusters(points: Floats, n: int) -> tuple[int, ...]:
    """(n_points, d) -> the cluster of each by Ward's method, at most `n` of them, numbered by their first point."""
    from scipy.cluster.hierarchy import fcluster, ward  # type: ignore[import-untyped]

    if len(points) < 2 or n < 2:
        return (0,) * len(points)
    raw = fcluster(ward(np.nan_to_num(points)), n, "maxclust").tolist()
    order = {cluster: place for place, cluster in enumerate(dict.fromkeys(raw))}
    return tuple(order[cluster] for cluster in raw)


def merge(answers: Sequence[Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Concepts of each group -> all distinct ones, the groups' first ones first; each with the groups it is from."""
    found: dict[str, list[int]] = {}
    for place in range(max(map(len, answers), default=0)):
        for group, concepts in enumerate(answers):
            if place < len(concepts):
                found.setdefault(concepts[place], []).append(group)
    return {concept: tuple(groups) for concept, groups in found.items()}


def pick(
    order: Sequence[int], n: int, groups: Sequence[Sequence[int]] = (), alike: Mapping[int, set[int]] | None = None
) -> list[int]:
    """The candidates of a label: `n` of `order`, which is best first.

    Those `alike` a better one are left out; then the best of every group that has none yet comes before the rest.
    """
    kept: list[int] = []
    for one in order:
        if not alike or not alike.get(one, set()) & set(kept):
            kept.append(one)
    taken: list[int] = []
    spoken: set[int] = set()
    for one in kept:
        own = set(groups[one]) if groups else set()
        if not taken or own - spoken == own != set():
            taken.append(one)
            spoken |= own
    rest = [one for one in kept if one not in taken]
    return [*taken, *rest][:n]
