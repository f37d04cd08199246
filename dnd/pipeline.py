"""The main job: a run file in, labels out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from dnd.api import Grading, Label, ProbingSet, Runtime, Target, Unit
from dnd.errors import StoreError, UsageError
from dnd.exemplars import ExemplarResult, find_exemplars
from dnd.output import write_findings, write_provenance
from dnd.probing import FolderSet, UnionSet
from dnd.progress import Meter
from dnd.registry import KINDS, Registry
from dnd.runfile import Run
from dnd.screen import show_end, show_grading, show_labels, show_unreadable
from dnd.settings import parse_units
from dnd.stages import Finding, Job, find_labels
from dnd.store import Store, stage_key, write_atomic
from dnd.surroundings import check_packages, set_switches
from dnd.target import Preprocess, fingerprint, load_function
from dnd.watched import Watched
from dnd.weights import Weights, model_names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    findings: tuple[Finding, ...]
    grading: Grading | None

    @property
    def labels(self) -> list[Label]:
        """One per unit, in the order of layers and units."""
        return [finding.label for finding in self.findings]

    @property
    def exit_code(self) -> int:
        """0, or 3 where some units failed."""
        return 3 if any(label.status == "failed" for label in self.labels) else 0

    def to_pandas(self) -> Any:
        """labels.csv as a pandas.DataFrame."""
        import pandas

        return pandas.read_csv(self.folder / "labels.csv")


def execute(
    run: Run,
    out: Path,
    *,
    fresh: bool = False,
    console: Console | None = None,
    registry: Registry | None = None,
    live: tuple[torch.nn.Module, Preprocess] | None = None,
) -> Result:
    """Label the units; resumes what an earlier, unfinished or similar run left in the store.

    The store is the folder `.dnd-store` beside `out` (or $DND_STORE), shared by all runs that lie there.
    `live` is a target at hand, (module, preprocess), in place of the one the run names.
    """
    began = time.perf_counter()
    console = console or Console(quiet=True)
    registry = registry or Registry.load()
    _check_folder(out, run, fresh)
    set_switches()
    check_packages(registry.find(c.kind, c.name) for c in run.choices().values() if c.kind in KINDS)
    weights = Weights.default()
    models = list(dict.fromkeys(name for choice in run.choices().values() for name in model_names(choice.config)))
    weights.check(models)
    runtime = Runtime(run.device, weights.resolve)
    target = None if live else _target(run, registry, runtime)
    store = Store(Path(os.environ.get("DND_STORE") or out.parent / ".dnd-store"))
    probing = _probing(run, registry, runtime, store.folder / "digests.sqlite")
    module, preprocess = live or (target.build() if target else load_function(run.target.name))
    watched = Watched(module, preprocess, run.target.layers, device=run.device, pooling=run.exemplars.pooling)
    with watched:
        units = _units(run, watched.layer_sizes())
    write_atomic(out / "run.toml", run.to_toml().encode())
    identity = fingerprint(module, preprocess)
    with Meter(console) as meter:
        job = Job(run, registry, store, runtime, meter, weights.digest, fresh)
        result = _exemplar_stage(job, watched, identity, probing, units)
        findings = tuple(find_labels(job, watched, identity, result, units))
    labels = [finding.label for finding in findings]
    grading = target.grade(labels) if target else None
    write_findings(out, findings)
    seconds = time.perf_counter() - began
    facts = {
        "models": {name: weights.digest(name) for name in models},
        "target": identity,
        "probing": {"images": result.n_images, "duplicates": result.duplicates, "unreadable": dict(result.unreadable)},
        "no_crops": result.no_crops,
        "units": dict(Counter(label.status for label in labels)),
    }
    write_provenance(out, job.tallies, seconds=seconds, facts=facts, grading=grading)
    show_unreadable(console, list(result.unreadable))
    show_labels(console, labels, grading)
    if grading:
        show_grading(console, grading)
    show_end(console, out, seconds)
    return Result(out, findings, grading)


def _check_folder(out: Path, run: Run, fresh: bool) -> None:
    """UsageError where the run folder is another run's."""
    file, text = out / "run.toml", run.to_toml()
    try:
        old = file.read_text("utf-8") if file.exists() else None
    except OSError as error:
        raise StoreError(f"cannot read {file}: {error.strerror}", "Choose another folder with --out.") from error
    if old is not None and old != text and not fresh:
        raise UsageError(
            f"{out} holds a run with other settings ({file})",
            "Choose another folder with --out (stages that agree are shared), or --fresh to replace it.",
        )


def _target(run: Run, registry: Registry, runtime: Runtime) -> Target | None:
    """The named target; None for a function of the user's own."""
    if run.target.kind != "target":
        return None
    return cast(Target, registry.make("target", run.target.name, run.target.config, runtime))


def _probing(run: Run, registry: Registry, runtime: Runtime, memory: Path) -> ProbingSet:
    sets: list[ProbingSet] = []
    for choice in run.probing:
        if choice.kind == "folder":
            sets.append(FolderSet(Path(choice.name), memory))
        else:
            sets.append(cast(ProbingSet, registry.make("probing-set", choice.name, choice.config, runtime)))
    return sets[0] if len(sets) == 1 else UnionSet(sets)


def _units(run: Run, sizes: Mapping[str, int]) -> list[Unit]:
    return [Unit(layer, i) for layer in run.target.layers for i in parse_units(run.target.units, sizes[layer])]


def _exemplar_stage(
    job: Job, watched: Watched, identity: str, probing: ProbingSet, units: Sequence[Unit]
) -> ExemplarResult:
    settings = job.run.exemplars
    key = stage_key(
        "exemplars",
        1,
        {
            "target": identity,
            "probing": probing.digest(),
            "settings": settings.model_dump(mode="json"),
            "seed": job.run.seed,
        },
    )
    tally = job.tally("exemplars", key)
    wanted: dict[str, list[int]] = {}
    for unit in units:
        wanted.setdefault(unit.layer, []).append(unit.index)
    with tally.running(), job.meter.stage(tally.name, len(probing)) as advance, watched:
        result = find_exemplars(
            watched,
            probing,
            wanted,
            settings,
            job.store,
            key,
            seed=job.run.seed,
            batch_size=job.run.batch_size,
            progress=advance,
            workers=job.run.workers,
            pool=settings.pool,
            fresh=job.fresh,
        )
    tally.items, tally.computed, tally.backend_seconds = len(units), result.computed, result.target_seconds
    return result
