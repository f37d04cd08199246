"""`dnd run --dry-run`: the plan of a run as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dnd.api import Runtime
from dnd.config.run import BACKENDS, Run
from dnd.doctor.plan import count_images, count_units, read_target
from dnd.errors import ModelError
from dnd.models.weights import Weights
from dnd.pipeline.plan import NAMES, StagePlan, plan_stages
from dnd.pipeline.rates import BACKEND_OF, rates_path, read_rates
from dnd.plugin.registry import Registry


def show_plan(console: Console, run: Run, registry: Registry) -> None:
    """Print targets, probing sets, backends and their models, then the stages."""
    weights = Weights.default()
    runtime = Runtime("cpu", weights.resolve)
    sizes = {choice.name: count_images(choice, registry, runtime) for choice in run.probing}
    readings = read_target(run, registry, runtime)
    units = count_units(run, readings)
    table = _table("", "choice", "details")
    layers = f"{', '.join(run.target.layers)}; units {run.target.units}"
    counted = f" ({units:,} in all)" if isinstance(units, int) else f" (not counted: {units})"
    table.add_row("target", escape(run.target.name), escape(layers + counted))
    if isinstance(readings, dict):
        for layer, reading in readings.items():
            table.add_row("layer", escape(layer), escape(str(reading)))
    for name, size in sizes.items():
        table.add_row("probing", escape(name), f"{size:,} images" if isinstance(size, int) else escape(size))
    for section, choice in run.choices().items():
        if section in (*BACKENDS, "method"):
            given = choice.config.model_dump(mode="json", exclude_unset=True)
            table.add_row(section, escape(choice.name), escape(", ".join(f"{k} = {v}" for k, v in given.items())))
    console.print(table)
    _show_models(console, run, weights)
    images = [size for size in sizes.values() if isinstance(size, int)]
    whole = sum(images) if len(images) == len(sizes) else None
    plans = plan_stages(run, units if isinstance(units, int) else None, whole, read_rates(rates_path()))
    _show_stages(console, run, plans)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("MB", "items at most") else "left")
    return table


def _show_models(console: Console, run: Run, weights: Weights) -> None:
    table = _table("model", "for", "MB", "state")
    for name, sections in run.models().items():
        try:
            row = [weights.find(name).megabytes, weights.state(name)]
        except ModelError:
            row = ["?", "not in models.lock"]
        table.add_row(escape(name), ", ".join(sections), *row)
    if table.row_count:
        console.print()
        console.print(table)


def _show_stages(console: Console, run: Run, plans: Sequence[StagePlan]) -> None:
    k, n, m = run.exemplars.k, run.concepts.n, run.images.n
    what = {
        "exemplars": f"every probing image through the target once; {k} per unit",
        "crops": f"up to {run.exemplars.max_crops} crops of each exemplar",
        "captions": f"each distinct exemplar once, {k} per unit at most",
        "concepts": f"up to {n} candidates per unit",
        "images": f"{m} of each distinct candidate, {n * m} per unit at most",
        "activations": "those images through the target once",
        "scores": "every candidate of every unit",
        "verify": f"{run.verify.n} new images of each label and of up to {NAMES - 1} names beside it",
    }
    choices = run.choices()
    table = _table("stage", "with", "items at most", "time at most", "what")
    for plan in plans:
        count = "?" if plan.items is None else f"{plan.items:,}"
        choice = choices[BACKEND_OF.get(plan.name, "target")]
        time = "no rate known yet" if plan.rate is None else "?" if plan.seconds is None else duration(plan.seconds)
        table.add_row(plan.name, escape(choice.name), count, time, what[plan.name])
    console.print("\nStages, each over all units; what an earlier run has stored is reused")
    console.print(table)
    console.print(escape(_total(plans)))


def _total(plans: Sequence[StagePlan]) -> str:
    """One line on the whole run's time."""
    unknown = [plan.name for plan in plans if plan.seconds is None]
    if len(unknown) == len(plans):
        return "How long it takes is not known yet: a first run measures it, with a few units (--units 0-9) too."
    total = duration(sum(plan.seconds or 0 for plan in plans))
    rest = f", without {', '.join(unknown)}, of which it is not known" if unknown else " in all"
    return f"At most {total}{rest}, by the rates of earlier runs on this machine."


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"
