"""The main job: a run file in, labels out."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from dnd.api import Grading, Label, ProbingSet, Runtime, Target, Unit
from dnd.checks.parts import refuse_unfit
from dnd.errors import DamagedError, DndError, StoreError, UsageError
from dnd.exemplars import ExemplarResult, find_exemplars
from dnd.files import write_atomic
from dnd.finding import Finding
from dnd.heartbeat import Heartbeat
from dnd.keys import stage_key
from dnd.locking import only_here
from dnd.mapping import Tally
from dnd.output import write_findings, write_provenance
from dnd.probing import FolderSet, UnionSet
from dnd.progress import Meter
from dnd.rates import Passed, record
from dnd.reading import RunFolder
from dnd.registry import KINDS, Registry
from dnd.runfile import OWN_METHOD, Run
from dnd.screen import show_end, show_grading, show_labels, show_reused, show_unreadable
from dnd.settings import flatten, parse_units
from dnd.stages.job import Job
from dnd.stages.labels import find_labels
from dnd.store import Store
from dnd.study import label_by
from dnd.surroundings import check_packages, set_switches
from dnd.target import Preprocess, fingerprint, load_function
from dnd.toml import parse_toml
from dnd.watched import Watched
from dnd.weights import Weights

if TYPE_CHECKING:
    import torch

    from dnd.cards import Card

_LOG = logging.getLogger(__name__)
_MOST_SHOWN = 3
"""Settings that are told apart in a message."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    folder: Path
    findings: Sequence[Finding]
    """One per unit, with all that led to its label; put together anew each time one is asked for."""
    grading: Grading | None
    labels: list[Label]
    """One per unit, in the order of layers and units."""

    @property
    def exit_code(self) -> int:
        """0, or 3 where some units failed."""
        return 3 if any(label.status == "failed" for label in self.labels) else 0

    def summary(self) -> str:
        """What a scheduler wants to know, as JSON."""
        record = json.loads((self.folder / "run.json").read_text("utf-8"))
        told = {name: record[name] for name in ("units", "seconds", "truth") if name in record}
        return json.dumps({"run": str(self.folder), "exit_code": self.exit_code, **told}, ensure_ascii=False)

    def to_pandas(self) -> Any:
        """labels.csv as a pandas.DataFrame."""
        return self.opened.to_pandas()

    @cached_property
    def opened(self) -> RunFolder:
        """Its folder, as `dnd.open_run` gives it."""
        return RunFolder(self.folder)

    def unit(self, key: object) -> Card:
        """A unit, as `dnd.open_run(folder).unit` gives it: `run.unit(7)`, `run["layer4/7"]`."""
        return self.opened.unit(key)

    def __getitem__(self, key: object) -> Card:
        return self.unit(key)

    def _repr_html_(self) -> str:
        return self.opened._repr_html_()


def execute(
    run: Run,
    out: Path,
    *,
    fresh: bool = False,
    console: Console | None = None,
    registry: Registry | None = None,
    live: tuple[torch.nn.Module, Preprocess] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Result:
    """Label the units; resumes what an earlier, unfinished or similar run left in the store.

    The store is the folder `.dnd-store` beside `out` (or $DND_STORE), shared by all runs that lie there.
    `live` is a target at hand, (module, preprocess), in place of the one the run names. Once `stopped` says so,
    the run ends with StoppedError after the batch it is at.
    """
    console = console or Console(quiet=True)
    registry = registry or Registry.load()
    with only_here(out):
        return _execute(run, out, registry, console, fresh, live, stopped)


def _execute(
    run: Run,
    out: Path,
    registry: Registry,
    console: Console,
    fresh: bool,
    live: tuple[torch.nn.Module, Preprocess] | None,
    stopped: Callable[[], bool],
) -> Result:
    began = time.perf_counter()
    check_folder(out, run, fresh)
    set_switches()
    check_packages(registry.find(c.kind, c.name) for c in run.choices().values() if c.kind in KINDS)
    weights = Weights.default()
    models = list(run.models())
    weights.check(models)
    runtime = Runtime(run.device, weights.resolve, run.devices)
    target = None if live else _target(run, registry, runtime)
    refuse_unfit(registry.make(c.kind, c.name, c.config, runtime) for c in run.choices().values() if c.kind in KINDS)
    store = Store(Path(os.environ.get("DND_STORE") or out.parent / ".dnd-store"))
    probing = _probing(run, registry, runtime, store.folder / "digests.sqlite")
    module, preprocess = live or _built(target, run)
    watched = Watched(module, preprocess, run.target.layers, device=run.devices, pooling=run.exemplars.pooling)
    with watched:
        units = _units(run, watched.layer_sizes())
    identity = fingerprint(module, preprocess)
    write_atomic(out / "run.toml", run.to_toml().encode())
    _LOG.info("the run in %s: target %s, %d units, %d probing images", out, run.target.name, len(units), len(probing))
    meter, tallies = Meter(console, stopped=stopped), list[Tally]()
    with Heartbeat(out, meter, tallies) as heartbeat:

        def find(store: Store, fresh: bool) -> tuple[ExemplarResult, Sequence[Finding]]:
            tallies.clear()
            job = Job(run, registry, store, runtime, meter, weights.digest, fresh, tallies)
            result = _exemplar_stage(job, watched, identity, probing, units)
            if run.method.name == OWN_METHOD:
                return result, find_labels(job, watched, identity, result, units)
            return result, tuple(label_by(job, watched, identity, probing, result, units))

        with meter:
            try:
                result, findings = find(store, fresh)
            except DamagedError as error:
                _LOG.warning("%s; the stages are gone over once more", error)
                result, findings = find(Store(store.folder, look=True), False)
        labels = write_findings(out, findings)
        grading = target.grade(labels) if target else None
        seconds = time.perf_counter() - began
        facts = {
            "models": {name: weights.digest(name) for name in models},
            "target": identity,
            "probing": {
                "images": result.n_images,
                "duplicates": result.duplicates,
                "unreadable": dict(result.unreadable),
            },
            "no_crops": result.no_crops,
            "units": dict(Counter(label.status for label in labels)),
        }
        write_provenance(out, tallies, seconds=seconds, facts=facts, grading=grading)
        record(run, tallies)
        heartbeat.facts = {"units": facts["units"]}
    show_unreadable(console, list(result.unreadable))
    show_labels(console, labels, grading)
    if grading:
        show_grading(console, grading)
    show_reused(console, tallies)
    show_end(console, out, seconds)
    return Result(out, findings, grading, labels)


def check_folder(out: Path, run: Run, fresh: bool) -> None:
    """UsageError where the run folder is another run's."""
    file = out / "run.toml"
    try:
        old = parse_toml(file.read_text("utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}", "Choose another folder with --out.") from error
    there, here = ({} if old is None else flatten(_what(old))), flatten(_what(run.to_dict()))
    if old is not None and there != here and not fresh:
        different = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        shown = [f"{key} is {_shown(there, key)} there, {_shown(here, key)} here" for key in different[:_MOST_SHOWN]]
        more = [f"and {len(different) - len(shown)} more"] if len(different) > len(shown) else []
        raise UsageError(
            f"{out} holds a run with other settings: {'; '.join(shown + more)}",
            "Choose another folder with --out (stages that agree are shared), or --fresh to replace it.",
        )


def _shown(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return "not set"
    text = json.dumps(settings[key], ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _what(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without those that only say where and how it is computed: they may change when it goes on."""
    return {key: value for key, value in tables.items() if key not in ("device", "timeout", "workers")}


def _built(target: Target | None, run: Run) -> tuple[torch.nn.Module, Preprocess]:
    """The network to study, and what prepares an image for it."""
    if target is None:
        return load_function(run.target.name)
    try:
        return target.build()
    except DndError:
        raise
    except Exception as error:
        error.add_note(f"in the target {target.name!r}, while it was built")
        raise


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
        2,
        {
            "target": identity,
            "probing": probing.digest(),
            "settings": settings.model_dump(mode="json"),
            "seed": job.run.seed,
        },
    )
    tally = job.tally("exemplars", key)
    with tally.running(), job.meter.stage(tally.name, len(probing)) as advance, watched:
        passed = Passed(advance)
        result = find_exemplars(
            watched,
            probing,
            units,
            settings,
            job.store,
            key,
            seed=job.run.seed,
            batch_size=job.run.batch_size,
            progress=passed,
            workers=job.run.workers,
            pool=settings.pool,
            fresh=job.fresh,
            stage=job.meter.stage,
        )
    tally.items, tally.computed, tally.backend_seconds = len(units), result.computed, result.target_seconds
    tally.passed = passed.items, passed.seconds
    _LOG.info(
        "exemplars: %d units, %d of them new; %d images, %d unreadable; %.1f s, in the target %.1f s",
        tally.items,
        tally.computed,
        result.n_images,
        len(result.unreadable),
        tally.seconds,
        tally.backend_seconds,
    )
    return result
