"""The concept profile as a picture: an SVG with a bar per layer and one per group, drawn by hand.

All text is escaped; colours are told apart by the colour-blind (Okabe and Ito's) and repeat with hatching.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dnd.analysis.group import OTHER, Groups
from dnd.text import plain

_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#555555")
_MOST_CATEGORIES, _MOST_GROUPS = 16, 30
_LEFT, _WIDE, _ROW, _BAR, _RIGHT = 190, 520, 26, 18, 240


def profile_svg(found: Groups) -> str:
    """Shares of super-categories per layer, above the sizes of the largest groups."""
    shares = found.profile()
    kinds = _largest(shares)
    top = 40
    parts = [_text(0, 18, "Share of each layer's labelled units by super-category", size=15)]
    for row, (layer, share) in enumerate(shares.items()):
        y = top + row * _ROW
        parts.append(_text(_LEFT - 8, y + 14, _short(layer, end=True), anchor="end"))
        x = float(_LEFT)
        for kind, value in _folded(share, kinds):
            parts.append(_bar(x, y, _WIDE * value, kinds.index(kind), f"{layer}: {kind} {value:.0%}"))
            x += _WIDE * value
    legend_end = top
    for row, kind in enumerate(kinds):
        y = top + row * 20
        parts.append(_bar(_LEFT + _WIDE + 20, y, 14, row, kind, height=14))
        parts.append(_text(_LEFT + _WIDE + 42, y + 12, _short(kind)))
        legend_end = y + 20
    foot = top + len(shares) * _ROW + 8
    if shares:
        parts += [_text(_LEFT + _WIDE * share, foot, f"{share:.0%}", anchor="middle") for share in (0, 0.5, 1)]
    under = max(foot, legend_end) + 40
    groups = found.groups[:_MOST_GROUPS]
    if groups:
        parts.append(_text(0, under - 14, "Groups of units by meaning, with how many units they have", size=15))
    most = max((len(group.units) for group in groups), default=1)
    for row, group in enumerate(groups):
        y = under + row * _ROW
        kind = group.category if group.category in kinds else kinds[-1]
        width = _WIDE * len(group.units) / most
        parts.append(_text(_LEFT - 8, y + 14, _short(group.name), anchor="end"))
        parts.append(_bar(_LEFT, y, width, kinds.index(kind), f"{group.name}: {', '.join(map(str, group.units[:40]))}"))
        parts.append(_text(_LEFT + width + 6, y + 14, str(len(group.units))))
    end = under + len(groups) * _ROW + 14
    more = f"{len(found.groups) - _MOST_GROUPS} more groups. " if len(found.groups) > _MOST_GROUPS else ""
    rest = f"{more}Units like no other: {len(found.ungrouped)}, without a label: {len(found.unlabelled)}."
    parts.append(_text(0, end, rest))
    height = end + 10
    width = _LEFT + _WIDE + _RIGHT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -4 {width + 20} {height + 8}" width="{width + 20}"'
        f' height="{height + 8}" role="img" font-family="sans-serif" font-size="12">'
    )
    return "\n".join(
        [head, "<title>Concept profile</title>", _hatching(len(kinds)), _ground(width, height), *parts, "</svg>\n"]
    )


def _largest(shares: dict[str, dict[str, float]]) -> list[str]:
    """The categories that get a colour, `other` last where there is need of one."""
    names = list(dict.fromkeys(name for share in shares.values() for name in share))
    kept = [name for name in names if name != OTHER][:_MOST_CATEGORIES]
    return kept if len(kept) == len(names) and kept else [*kept, OTHER]


def _folded(share: dict[str, float], kinds: Sequence[str]) -> list[tuple[str, float]]:
    found = [(kind, share[kind]) for kind in kinds if kind in share and kind != OTHER]
    rest = 1 - sum(value for _, value in found)
    return [*found, (OTHER, rest)] if OTHER in kinds and rest > 1e-9 else found


def _bar(x: float, y: float, width: float, place: int, title: str, height: float = _BAR) -> str:
    fill = f"url(#k{place})" if place >= len(_COLOURS) else _COLOURS[place]
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}">'
        f"<title>{escape(plain(title))}</title></rect>"
    )


def _hatching(count: int) -> str:
    lines = [
        f'<pattern id="k{place}" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        f'<rect width="6" height="6" fill="{_COLOURS[place % len(_COLOURS)]}"/>'
        f'<rect width="2" height="6" fill="#ffffff"/></pattern>'
        for place in range(len(_COLOURS), count)
    ]
    return f"<defs>{''.join(lines)}</defs>"


def _ground(width: float, height: float) -> str:
    return f'<rect x="-10" y="-4" width="{width + 20}" height="{height + 8}" fill="#ffffff"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="#222222">{escape(plain(text))}</text>'


def _short(text: str, most: int = 28, *, end: bool = False) -> str:
    """At most so many characters: of a layer its end, which tells it from the others of its block."""
    if len(text) <= most:
        return text
    return "…" + text[1 - most :] if end else text[: most - 1] + "…"
