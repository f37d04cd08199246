"""`dnd prune`: what becomes of a classifier without some of its units."""

from __future__ import annotations

import click


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
    as many others, drawn at random --seeds times from the active units of the same layers. The target itself is
    left as it is; --out saves which units to leave out.
    """
    import json
    from pathlib import Path
    from typing import Any, cast

    from dnd.commands import make_console
    from dnd.commands.options import import_from_here
    from dnd.pruning import Wish, carry_out
    from dnd.pruning.screen import save_mask, show_pruning
    from dnd.reading import RunFolder

    import_from_here()
    found = carry_out(RunFolder(folder), Wish(**cast(dict[str, Any], given)))
    if out:
        save_mask(Path(out), found)
    if as_json:
        click.echo(json.dumps(found.record(), indent=1, ensure_ascii=False))
        return
    show_pruning(make_console(), found)
    if out:
        click.echo(f"The mask is in {out}")
