"""`dnd bench --dry-run`: combinations, and the models of all of them, as tables."""

from __future__ import annotations

import click

from dnd.bench.matrix import Matrix
from dnd.cli.console import print_table
from dnd.cli.plan import duration
from dnd.doctor.matrix import CombinationPlan, Planner
from dnd.errors import DndError, ModelError, UsageError
from dnd.models.weights import Weights
from dnd.pipeline.rates import rates_path, read_rates
from dnd.plugin.registry import Registry


def show_bench_plan(matrix: Matrix, registry: Registry) -> None:
    """UsageError where a combination's settings are wrong."""
    weights = Weights.default()
    planner = Planner(registry, weights, read_rates(rates_path()))
    rows, users = [], dict[str, int]()
    for one in matrix.combinations:
        try:
            plan = planner.plan(one.name, one.run(registry))
        except UsageError as error:
            raise UsageError(f"combination {one.name}: {error}", error.hint) from error
        except DndError as error:  # a plugin that does not work here, say
            rows.append([one.name, "?", "?", "?", " ".join(str(error).split())[:200]])
            continue
        rows.append([one.name, *_cells(plan)])
        for model in plan.models:
            users[model] = users.get(model, 0) + 1
    print_table(("combination", "units", "time at most", "GB at most", "models"), rows)
    click.echo(
        "\nEach by itself: stages that combinations share are computed once.\n"
        "`?`: not known; a first run on this machine measures how long a stage takes."
    )
    if matrix.repeats > 1:
        click.echo(f"Each is run {matrix.repeats} times, with other seeds.")
    if users:
        click.echo()
        print_table(("model", "MB", "state", "combinations"), [[*_model(n, weights), str(k)] for n, k in users.items()])


def _cells(plan: CombinationPlan) -> list[str]:
    time = duration(plan.seconds) if plan.seconds is not None else "?"
    space = "?" if plan.store_bytes is None else f"{plan.store_bytes / 1e9:.1f}"
    return ["?" if plan.units is None else f"{plan.units:,}", time, space, ", ".join(plan.models)]


def _model(name: str, weights: Weights) -> list[str]:
    try:
        return [name, weights.find(name).megabytes, weights.state(name)]
    except ModelError:
        return [name, "?", "not in models.lock"]
