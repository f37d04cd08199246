"""`dnd bench`: combinations of methods, backends and settings, side by side."""

from __future__ import annotations

import click

from dnd.text import json_text


@click.command()
@click.argument("matrix", metavar="MATRIX.toml", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--out", metavar="FOLDER", type=click.Path(file_okay=False), help="Where all goes.  [default: runs/bench-<matrix>]"
)
@click.option("--only", metavar="NAME", multiple=True, help="These combinations alone; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Print what each combination takes: hours, disk, models. Run nothing.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: bench.json on standard output.")
def bench(matrix: str, out: str | None, only: tuple[str, ...], dry_run: bool, as_json: bool) -> int:
    """Run every combination of a matrix and compare them.

    Stages that combinations share are computed once. The same command goes on where it was stopped: finished
    runs are not run again. Writes bench.html, bench.md, bench.json, and tables of combinations and of units as
    CSV and Parquet.
    """
    from pathlib import Path

    from dnd.bench.compare import measure
    from dnd.bench.execute import run_matrix
    from dnd.bench.matrix import read_matrix
    from dnd.bench.page import write_bench
    from dnd.bench.quality import choose_metric
    from dnd.bench.table import screen
    from dnd.cli.console import make_progress_console, print_table
    from dnd.plugin.registry import Registry

    wanted = read_matrix(Path(matrix))
    if only:
        wanted = wanted.only(only)
    if dry_run:
        from dnd.cli.bench_plan import show_bench_plan

        show_bench_plan(wanted, Registry.load())
        return 0
    choose_metric(wanted.metric, set())
    folder = Path(out) if out else Path("runs") / f"bench-{wanted.path.stem}"

    def report(number: int, of: int, name: str) -> None:
        click.echo(f"{number} of {of}: {name}", err=True)

    try:
        outcomes = run_matrix(wanted, folder, Registry.load(), report, make_progress_console())
    except KeyboardInterrupt:
        click.echo("\nInterrupted. What is finished is kept: the same command goes on from there.", err=True)
        return 1
    found = measure(outcomes, wanted.reference, wanted.metric)
    write_bench(folder, found, wanted.path.stem)
    if as_json:
        click.echo(json_text(found.record(), indent=1))
    else:
        print_table(*screen(found))
        if not found.metric:
            runs = " ".join(str(folder / "runs" / one.folder) for one in found.outcomes[:2])
            click.echo(
                f"\nNo truth is known, so nothing is ranked. Labels side by side:\ndnd report {runs} --out compared"
            )
        click.echo(f"\nAll columns and what they mean, the plot and the main effects:\n{folder}/bench.html")
    return found.exit_code
