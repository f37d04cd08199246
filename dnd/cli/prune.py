"""`dnd prune`: what becomes of a classifier without some of its units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dnd.errors import UsageError
from dnd.text import json_text

if TYPE_CHECKING:
    from rich.console import Console

    from dnd.analysis.prune import Comparison, Pruning


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path())
@click.option("--concept", "concepts", metavar="TEXT", multiple=True, help="Units whose label means this; repeatable.")
@click.option("--ungrouped", is_flag=True, help="Units whose label is like no other's (see `dnd group`).")
@click.option("--uninterpretable", is_flag=True, help="Units that the run found uninterpretable.")
@click.option(
    "--least",
    metavar="X",
    type=click.FloatRange(-1, 1),
    default=0.7,
    show_default=True,
    help="How near to TEXT a label must be.",
)
@click.option("--layer", metavar="LAYER", multiple=True, help="Only units of this layer; repeatable.")
@click.option("--encoder", metavar="NAME|FOLDER", help="Sentence encoder.  [default: one of models.lock that is here]")
@click.option(
    "--eval",
    "dataset",
    metavar="DATASET",
    help="A folder with a folder of images per class, or a labelled probing set.",
)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting of the probing set; repeatable.")
@click.option(
    "--classes",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="The target's classes, one a line in the order of its outputs.  [default: the data set's, sorted]",
)
@click.option("--seeds", metavar="N", type=click.IntRange(2), default=20, show_default=True, help="Random prunings.")
@click.option("--device", metavar="D", help="cpu, cuda, cuda:1 or auto.  [default: the run's]")
@click.option("--out", metavar="FILE", type=click.Path(dir_okay=False), help="Mask: .safetensors or .json.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def prune(folder: str, out: str | None, as_json: bool, **given: object) -> None:
    """Set some units to zero and measure what that does.

    The units are listed for review; with --eval, the target classifies DATASET with them, without them, and without
    as many others, chosen at random --seeds times from the active units of the same layers. The target itself is
    left as it is; --out saves which units to leave out.
    """
    from pathlib import Path
    from typing import Any, cast

    from dnd.analysis.prune import PruneSpec, carry_out
    from dnd.cli.console import make_console
    from dnd.results.run import RunFolder

    found = carry_out(RunFolder(folder), PruneSpec(**cast(dict[str, Any], given)))
    if out:
        save_mask(Path(out), found)
    if as_json:
        click.echo(json_text(found.record(), indent=1))
        return
    show_pruning(make_console(), found)
    if out:
        click.echo(f"The mask is in {out}")


_MOST_ROWS = 100


def save_mask(file: Path, pruning: Pruning) -> None:
    """.json: {"pruned": {layer: [units]}}. .safetensors: per layer a uint8 vector, 1 for a unit that stays, as long as
    the run's highest unit demands."""
    import numpy as np

    from dnd.store.files import write_atomic

    units = pruning.units()
    if file.suffix == ".json":
        write_atomic(file, (json_text({"pruned": units}, indent=1) + "\n").encode())
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
    from rich.markup import escape
    from rich.table import Table

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
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

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
        f"{len(found.random)} times {units} of {found.active} active units instead, chosen at random: "
        f"{mean:.1%} on average, 95 % of them {spread[0]:.1%} to {spread[1]:.1%}; {better} as good or better."
    )
