"""The concept profile as a picture: a bar per layer and one per group; colours that the colour-blind tell apart."""

from __future__ import annotations

from collections.abc import Sequence

from dnd.analysis.group import OTHER, Groups
from dnd.analysis.svg import Drawing

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""Okabe and Ito's."""
_REST = "#555555"
_MOST_GROUPS = 30
_LEFT, _WIDE, _ROW, _BAR, _RIGHT, _TOP = 200, 520, 26, 18, 240, 40


def profile_svg(found: Groups) -> str:
    """Shares of super-categories per layer, above the sizes of the largest groups."""
    shares, groups = found.profile(), found.groups[:_MOST_GROUPS]
    kinds = _largest(shares)
    under = _TOP + max(len(shares), len(kinds)) * _ROW + 60
    end = under + len(groups) * _ROW + 14
    drawing = Drawing("Concept profile", width=_LEFT + _WIDE + _RIGHT, height=end + 14)
    drawing.text(10, 22, "Share of each layer's labelled units by super-category", size=15)
    for row, (layer, share) in enumerate(shares.items()):
        x, y = float(_LEFT), _TOP + row * _ROW
        drawing.text(_LEFT - 8, y + 14, _short(layer, end=True), anchor="end")
        for kind, value in _folded(share, kinds):
            drawing.bar(x, y, _WIDE * value, _BAR, kinds[kind], f"{layer}: {kind} {value:.0%}")
            x += _WIDE * value
    for tick in (0, 0.5, 1) if shares else ():
        drawing.text(_LEFT + _WIDE * tick, _TOP + len(shares) * _ROW + 8, f"{tick:.0%}", anchor="middle")
    for row, (kind, colour) in enumerate(kinds.items()):
        drawing.bar(_LEFT + _WIDE + 20, _TOP + row * _ROW, 14, 14, colour, kind)
        drawing.text(_LEFT + _WIDE + 42, _TOP + row * _ROW + 12, _short(kind))
    if groups:
        drawing.text(10, under - 14, "Groups of units by meaning, with their numbers of units", size=15)
    for row, group in enumerate(groups):
        y, width = under + row * _ROW, _WIDE * len(group.units) / len(groups[0].units)
        drawing.text(_LEFT - 8, y + 14, _short(group.name), anchor="end")
        units = ", ".join(map(str, group.units[:40]))
        drawing.bar(_LEFT, y, width, _BAR, kinds.get(group.category, _REST), f"{group.name}: {units}")
        drawing.text(_LEFT + width + 6, y + 14, str(len(group.units)))
    more = f"{len(found.groups) - _MOST_GROUPS} more groups. " if len(found.groups) > _MOST_GROUPS else ""
    rest = f"{more}Units like no other: {len(found.ungrouped)}, without a label: {len(found.unlabelled)}."
    drawing.text(10, end, rest)
    return drawing.svg()


def _largest(shares: dict[str, dict[str, float]]) -> dict[str, str]:
    """Colours of the most common categories; those of all others, where there are any, are one, `other`."""
    names = list(dict.fromkeys(name for share in shares.values() for name in share))
    kept = [name for name in names if name != OTHER][: len(_COLOURS)]
    found = dict(zip(kept, _COLOURS, strict=False))
    return found if len(kept) == len(names) else {**found, OTHER: _REST}


def _folded(share: dict[str, float], kinds: dict[str, str]) -> Sequence[tuple[str, float]]:
    """Of one layer: (category, share) of those with a colour, then of all the others together."""
    found = [(kind, share[kind]) for kind in kinds if kind in share and kind != OTHER]
    rest = 1 - sum(value for _, value in found)
    return [*found, (OTHER, rest)] if OTHER in kinds and rest > 1e-9 else found


def _short(text: str, most: int = 28, *, end: bool = False) -> str:
    """At most `most` characters: of a layer its end, which tells it from the others of its block."""
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if end else text[: most - 1] + "…"
