"""A grouping as CSV, JSON and on the terminal."""

from __future__ import annotations

from typing import Any

from dnd.analysis.group import Groups
from dnd.text import spreadsheet_lines


def groups_csv(found: Groups) -> str:
    """layer,unit,label,group,category: a line per unit of the run; no group where it is like no other."""
    group_of = {unit: group.name for group in found.groups for unit in group.units}
    rows = [
        (unit.layer, unit.index, found.labels.get(unit, ""), group_of.get(unit, ""), found.categories.get(unit, ""))
        for unit in sorted((*found.labels, *found.unlabelled))
    ]
    return "".join(spreadsheet_lines([("layer", "unit", "label", "group", "category"), *rows]))


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
