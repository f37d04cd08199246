"""A grouping as CSV, JSON and on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnd.meaning.grouping import Groups
from dnd.plain import csv_lines

_MOST_ROWS = 60


def groups_csv(found: Groups) -> str:
    """layer,unit,label,group,category: a line per unit of the run; no group where it is like no other."""
    group_of = {unit: group.name for group in found.groups for unit in group.units}
    rows = [
        (unit.layer, unit.index, found.labels.get(unit, ""), group_of.get(unit, ""), found.categories.get(unit, ""))
        for unit in sorted((*found.labels, *found.unlabelled))
    ]
    return "".join(csv_lines([("layer", "unit", "label", "group", "category"), *rows]))


def groups_record(found: Groups) -> dict[str, Any]:
    """As JSON."""
    return {
        "groups": [
            {
                "name": group.name,
                "category": group.category,
                "coherence": round(group.coherence, 4),
                "units": [
                    {"layer": unit.layer, "unit": unit.index, "label": label}
                    for unit, label in zip(group.units, group.labels, strict=True)
                ],
            }
            for group in found.groups
        ],
        "ungrouped": [
            {"layer": unit.layer, "unit": unit.index, "label": found.labels[unit]} for unit in found.ungrouped
        ],
        "unlabelled": [{"layer": unit.layer, "unit": unit.index} for unit in found.unlabelled],
        "profile": {
            layer: {name: round(share, 4) for name, share in shares.items()}
            for layer, shares in found.profile().items()
        },
    }


def show_groups(console: Console, found: Groups) -> None:
    """Groups with their units' labels, then the share of each super-category per layer."""
    if not found.labels:
        console.print("The run has no labelled unit.")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("group", "units", "coherence", "category", "other labels"):
        table.add_column(column, justify="right" if column in ("units", "coherence") else "left")
    for group in found.groups[:_MOST_ROWS]:
        others = [label for label in dict.fromkeys(group.labels) if label != group.name]
        words = ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
        table.add_row(
            escape(group.name), str(len(group.units)), f"{group.coherence:.2f}", escape(group.category), escape(words)
        )
    console.print(table)
    if len(found.groups) > _MOST_ROWS:
        console.print(f"... and {len(found.groups) - _MOST_ROWS} more in groups.csv")
    console.print(
        f"Groups: {len(found.groups)}. Units like no other: {len(found.ungrouped)}, without a label: "
        f"{len(found.unlabelled)}."
    )
    console.print("share of a layer's labelled units", style="italic")
    profile = Table(box=None, header_style="bold", pad_edge=False)
    shares = found.profile()
    profile.add_column("category")
    for layer in shares:
        profile.add_column(escape(layer), justify="right")
    for name in dict.fromkeys(name for one in shares.values() for name in one):
        profile.add_row(escape(name), *(f"{one.get(name, 0):.0%}" for one in shares.values()))
    console.print(profile)
