"""`dnd run --dry-run`: what a run would do, with no model loaded and nothing written."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnd.api import ProbingSet, Runtime
from dnd.errors import DndError, ModelError
from dnd.registry import Registry
from dnd.runfile import BACKENDS, Choice, Run
from dnd.weights import Weights, model_names


def show_plan(console: Console, run: Run, registry: Registry) -> None:
    """Print targets, probing sets, backends and their models, then the stages."""
    weights = Weights.default()
    runtime = Runtime("cpu", weights.resolve)
    table = _table("", "choice", "details")
    table.add_row(
        "target", escape(run.target.name), escape(f"{', '.join(run.target.layers)}; units {run.target.units}")
    )
    for choice in run.probing:
        table.add_row("probing", escape(choice.name), _size(choice, registry, runtime))
    for section in BACKENDS:
        choice = getattr(run, section)
        given = choice.config.model_dump(mode="json", exclude_unset=True)
        table.add_row(section, escape(choice.name), escape(", ".join(f"{k} = {v}" for k, v in given.items())))
    console.print(table)
    _show_models(console, run, weights)
    console.print(_stages(run))


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    return table


def _size(choice: Choice, registry: Registry, runtime: Runtime) -> str:
    """How many images, where asking is cheap; what is wrong with the set otherwise."""
    try:
        probing: ProbingSet
        if choice.kind == "folder":
            from dnd.probing import FolderSet

            probing = FolderSet(Path(choice.name))
        else:
            made = registry.make(choice.kind, choice.name, choice.config, runtime)
            assert isinstance(made, ProbingSet)
            probing = made
        return f"{len(probing):,} images"
    except DndError as error:
        return escape(f"problem: {error}")


def _show_models(console: Console, run: Run, weights: Weights) -> None:
    table = _table("model", "for", "MB", "state")
    for section, choice in run.choices().items():
        for name in model_names(choice.config):
            try:
                row = [f"{weights.find(name).size / 1e6:,.1f}", weights.state(name)]
            except ModelError:
                row = ["?", "not in models.lock"]
            table.add_row(escape(name), section, *row)
    if table.row_count:
        console.print()
        console.print(table)


def _stages(run: Run) -> str:
    """One line per stage with what is known of its items beforehand."""
    k, n, m = run.exemplars.k, run.concepts.n, run.images.n
    crops = f", up to {run.exemplars.max_crops} crops of each" if run.exemplars.crops else ""
    return escape(
        f"""
Stages, each over all units; what an earlier run has stored is reused
  exemplars    every probing image through the target once; {k} per unit{crops}
  captions     {run.captioner.name}: each distinct exemplar once, {k} per unit at most
  concepts     {run.summarizer.name}: up to {n} candidates per unit
  images       {run.generator.name}: {m} of each distinct candidate, {n * m} per unit at most
  activations  those images through the target once
  scores       {run.scorer.name}: every candidate of every unit"""
    )
