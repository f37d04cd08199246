"""What `dnd prune` shows and saves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnd.errors import UsageError
from dnd.files import write_atomic
from dnd.pruning import Comparison, Pruning

_MOST_ROWS = 100


def save_mask(file: Path, pruning: Pruning) -> None:
    """.json: {"pruned": {layer: [units]}}. .safetensors: per layer a uint8 vector, 1 for a unit that stays, as long as
    the run's highest unit demands."""
    units = pruning.units()
    if file.suffix == ".json":
        write_atomic(file, (json.dumps({"pruned": units}, indent=1) + "\n").encode())
    elif file.suffix == ".safetensors":
        from safetensors.numpy import save

        masks = {}
        for layer, indices in units.items():
            masks[layer] = np.ones(pruning.sizes[layer], np.uint8)
            masks[layer][indices] = 0
        write_atomic(file, save(masks))
    else:
        raise UsageError(f"{file.name} is neither .json nor .safetensors", "Give the mask one of these endings.")


def show_pruning(console: Console, pruning: Pruning) -> None:
    """The units for review, then the accuracies."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("pruned unit", "label", "because"):
        table.add_column(column)
    for unit, why in list(pruning.why.items())[:_MOST_ROWS]:
        table.add_row(escape(str(unit)), escape(pruning.labels[unit]), escape(why))
    console.print(table)
    if len(pruning.why) > _MOST_ROWS:
        console.print(f"... and {len(pruning.why) - _MOST_ROWS} more, with --json")
    if pruning.comparison:
        console.print()
        _show_comparison(console, pruning.comparison, len(pruning.why))


def _show_comparison(console: Console, found: Comparison, units: int) -> None:
    table = Table(
        title=f"accuracy on {found.images} images",
        title_justify="left",
        box=None,
        header_style="bold",
        pad_edge=False,
    )
    for column in ("", "before", "after", "random instead"):
        table.add_column(column, justify="right" if column else "left")
    mean = float(np.mean(found.random))
    table.add_row("all classes", f"{found.before:.1%}", f"{found.after:.1%}", f"{mean:.1%}", style="bold")
    for name, values in found.classes.items():
        table.add_row(escape(name), *(f"{value:.1%}" for value in values))
    console.print(table)
    low, high = found.change
    better = sum(value >= found.after for value in found.random)
    spread = np.quantile(found.random, (0.025, 0.975))
    console.print(
        f"Change {100 * (found.after - found.before):+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f} "
        "(bootstrap over images)."
    )
    console.print(
        f"{len(found.random)} times {units} of {found.active} active units instead, drawn at random: "
        f"{mean:.1%} on average, 95 % of them {spread[0]:.1%} to {spread[1]:.1%}; {better} as good or better."
    )
