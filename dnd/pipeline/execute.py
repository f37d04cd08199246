"""The main job: a run file in, labels out."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dnd.api import Backend, Method, ProbingSet, Runtime, Unit, model_folders
from dnd.config.read import build_run
from dnd.config.run import HALF, OWN_METHODS, Run
from dnd.config.tables import flatten
from dnd.errors import DamagedError, DndError, StoreError, UsageError
from dnd.files import read_text
from dnd.models.weights import Weights
from dnd.offline.environment import set_switches
from dnd.pipeline.build import Builder, chosen_units, hook, identify
from dnd.pipeline.exemplars.find import ExemplarResult
from dnd.pipeline.exemplars.shard import Shard
from dnd.pipeline.exemplars.spread import SpreadPass
from dnd.pipeline.exemplars.stage import exemplar_stage
from dnd.pipeline.job import Job
from dnd.pipeline.label import label_units
from dnd.pipeline.plan import plan_stages
from dnd.pipeline.rates import rates_path, read_rates, record
from dnd.pipeline.study import label_by
from dnd.plugin.guard import guarded
from dnd.plugin.registry import KINDS, Entry, Registry
from dnd.plugin.requirements import check_packages, refuse_unfit
from dnd.probing.remember import RememberedSet
from dnd.results.run import RunFolder
from dnd.results.unit import UnitResult
from dnd.results.write import write_provenance, write_results
from dnd.runtime.cluster import Actors, Cluster, check_nodes, connected
from dnd.runtime.cores import over_cores
from dnd.runtime.ends import Processes
from dnd.runtime.heartbeat import Heartbeat
from dnd.runtime.progress import Meter
from dnd.runtime.stats import StageStats
from dnd.store.digests import folder_digest
from dnd.store.files import write_atomic
from dnd.store.folders import digests_path, results_folder
from dnd.store.images import Store
from dnd.store.locks import only_here
from dnd.store.toml import parse_toml
from dnd.target.fingerprint import foreign_hooks
from dnd.target.hooked import HookedTarget
from dnd.target.load import Preprocess

if TYPE_CHECKING:
    import torch


_LOG = logging.getLogger(__name__)
_HOW = ("device", "timeout", "workers", "executor", "address", "verify")
"""Settings that may change when a run goes on: no label depends on them."""
_MOST_SHOWN = 3
"""Settings that a message names one by one."""


def execute(
    run: Run,
    out: Path,
    *,
    fresh: bool = False,
    console: Console | None = None,
    registry: Registry | None = None,
    live: tuple[torch.nn.Module, Preprocess] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    shard: Shard | None = None,
) -> RunFolder:
    """Label the units; resumes what an earlier, unfinished or similar run left in the store.

    The store is the folder `.dnd-store` beside `out` (or $DND_STORE), shared by all runs in that folder.
    `live` is a target at hand, (module, preprocess), in place of the one the run names. Once `stopped` is true,
    the run ends with StoppedError after the batch it is at. A `shard` sees its share of the images, NotYetError while
    others have not seen theirs, and labels its share of the units. `console` shows how each layer is read and the
    progress; nothing else is printed.
    """
    console = console or Console(quiet=True)
    registry = registry or Registry.load()
    with only_here(out), _cluster(run) as cluster, guarded("code of a plugin or of the target"):
        result = _execute(run, Path(os.path.abspath(out)), registry, console, fresh, live, stopped, cluster, shard)
    result.folder = out  # as it was given, for messages
    return result


def _execute(
    run: Run,
    out: Path,
    registry: Registry,
    console: Console,
    fresh: bool,
    live: tuple[torch.nn.Module, Preprocess] | None,
    stopped: Callable[[], bool],
    cluster: Cluster | None,
    shard: Shard | None,
) -> RunFolder:
    began = time.perf_counter()
    check_folder(out, run, registry, fresh)
    set_switches()
    weights = Weights.default()
    builder = _builder(run, registry, weights, cluster)
    store = Store(results_folder(out))
    probing = builder.probing(run.probing, store.digests)
    module, preprocess = live or builder.module(run.target)
    hooks = foreign_hooks(module)
    own_code = hooks or run.target.kind == "function"  # which may not bear several copies at work
    devices = run.devices if own_code or run.general.device != "auto" else over_cores(run.devices)
    hooked = hook(run, module, preprocess, devices)
    with hooked:
        target = None if live else builder.target(run.target)
        sizes = hooked.layer_sizes()
        units = chosen_units(run, sizes, target, probing)
        chosen = _choice_of_units(len(units), sum(sizes.values()))
        units = units[shard.number - 1 :: shard.count] if shard else units
    identity = identify(target, module, preprocess, hooked.readings)
    write_atomic(out / "run.toml", run.to_toml().encode())
    _LOG.info("the run in %s: target %s, %d units, %d probing images", out, run.target.name, len(units), len(probing))
    for layer, reading in hooked.readings.items():
        _LOG.info("layer %s: %s", layer, reading)
        console.print(f"{layer}: {reading}", style="dim", markup=False, soft_wrap=True)
    console.print(chosen, style="dim", markup=False, soft_wrap=True)
    _LOG.info("hooks that the target came with: %s", "; ".join(hooks) or "none")
    plans = plan_stages(run, len(units), len(probing), read_rates(rates_path()))
    meter = Meter(console, stopped=stopped, plan={one.name: one.seconds for one in plans if one.name != "verify"})
    all_stats, ends = list[StageStats](), Actors() if cluster else Processes()
    with closing(ends), Heartbeat(out, meter, all_stats) as heartbeat:

        def label(store: Store, fresh: bool) -> tuple[ExemplarResult, Iterator[UnitResult]]:
            all_stats.clear()
            ends.close()  # the probing pass wants their room
            job = Job(run, builder, store, meter, weights.digest, fresh, all_stats, cluster, shard, ends)
            elsewhere = SpreadPass(cluster, run, _chosen_of(run, registry), identity) if cluster and not live else None
            return _stages(job, hooked, identity, probing, units, elsewhere)

        with meter:
            try:
                exemplars, results = label(store, fresh)
            except DamagedError as error:
                _LOG.warning("%s; the stages run once more", error)
                exemplars, results = label(Store(store.folder, verify=True), False)
        labels = write_results(out, results)
        statuses = dict(Counter(label.status for label in labels))
        models = {name: weights.digest(name) for name in run.models()} | _folders(run)
        layers = {layer: str(reading) for layer, reading in hooked.readings.items()}
        known = {"models": models, "target": identity, "layers": layers, "hooks": hooks}
        facts = {**known, **_facts(exemplars, run), "units": statuses}
        write_provenance(
            out,
            all_stats,
            packages=_packages(run, registry),
            seconds=time.perf_counter() - began,
            facts=facts,
            grading=target.grade(labels) if target else None,
        )
        record(run, all_stats)
        heartbeat.facts = {"units": statuses}
    return RunFolder(out)


_MANY = 200
"""Units whose labels take a while, even where each is cheap."""


def _choice_of_units(n: int, of: int) -> str:
    """What is labelled, in words: `--layer` without `--units` takes a whole layer, which may be more than meant."""
    if n < of:
        return f"{n:,} of {of:,} units"
    return f"all {of:,} units" + ("; --units 0-19 takes some of them" if of > _MANY else "")


def _cluster(run: Run) -> AbstractContextManager[Cluster | None]:
    """The cluster that the run's backends work on, if not on this machine."""
    return connected(run.general.address) if run.general.executor == "ray" else nullcontext()


def _builder(run: Run, registry: Registry, weights: Weights, cluster: Cluster | None) -> Builder:
    """Builds the run's plugins, once their packages and models are known to be there and to fit the machine."""
    check_packages(registry.find(c.kind, c.name) for c in run.choices().values() if c.kind in KINDS)
    for use in run.model_uses():
        weights.check_role(*use)
    weights.check(list(run.models()))
    devices = cluster.workers() if cluster else run.devices
    builder = Builder(registry, Runtime(devices[0], weights.resolve, devices))
    plugins = builder.plugins(run)
    if cluster:
        check_nodes([one for one in plugins if isinstance(one, Backend)], {n: weights.digest(n) for n in run.models()})
    else:
        refuse_unfit(plugins)
    return builder


def _chosen_of(run: Run, registry: Registry) -> tuple[Entry, ...]:
    """The plugins of the target and of the probing sets."""
    return tuple(registry.find(c.kind, c.name) for c in (run.target, *run.probing) if c.kind in KINDS)


def _stages(
    job: Job,
    hooked: HookedTarget,
    identity: str,
    probing: ProbingSet,
    units: Sequence[Unit],
    elsewhere: SpreadPass | None,
) -> tuple[ExemplarResult, Iterator[UnitResult]]:
    """Stage 1, then the other stages of the run's method; the results come one by one."""
    images = RememberedSet(probing)
    if job.run.method.name not in OWN_METHODS:
        method: Method = job.builder.plugin(job.run.method)
        exemplars = exemplar_stage(job, hooked, identity, images, units, method, elsewhere)
        return exemplars, label_by(job, hooked, images, method, exemplars, units)
    exemplars = exemplar_stage(job, hooked, identity, images, units, elsewhere=elsewhere)
    images.forget()
    return exemplars, label_units(job, hooked, identity, exemplars, units)


def _facts(exemplars: ExemplarResult, run: Run) -> dict[str, Any]:
    """What run.json says of the probing images."""
    probing = {
        "images": exemplars.n_images,
        "duplicates": exemplars.duplicates,
        "unreadable": dict(exemplars.unreadable),
        "half": [choice.name for choice in run.probing if choice.config == HALF],
    }
    return {"probing": probing, "no_crops": exemplars.no_crops, "notes": list(_notes(exemplars, run.exemplars.k))}


def _notes(exemplars: ExemplarResult, k: int) -> Iterator[str]:
    """What a reader of the labels should know, in a line each."""
    if few := exemplars.fewer_than(k):
        shown = ", ".join(f"{unit} ({len(exemplars.images(unit))})" for unit in few[:_MOST_SHOWN])
        rest = f" and {len(few) - _MOST_SHOWN} more" if len(few) > _MOST_SHOWN else ""
        units = "1 unit has" if len(few) == 1 else f"{len(few)} units have"
        yield f"{units} fewer than {k} exemplars, since no other probing image activates them: {shown}{rest}"
    if exemplars.narrow:
        yield (
            f"{exemplars.narrow} of {exemplars.n_images} probing images use less than an eighth of their 16 or 32 bits,"
            " so that hardly anything can be seen in them: scale them to the full range first"
        )


def _folders(run: Run) -> dict[str, str]:
    """The folders of models that settings name, and their digests."""
    configs = [choice.config for choice in run.choices().values()]
    paths = {path for config in configs for path in model_folders(config).values()}
    return {str(path): folder_digest(path, digests_path()) for path in sorted(paths)}


def _packages(run: Run, registry: Registry) -> set[str]:
    """What the run's plugins require."""
    chosen = [(choice.kind, choice.name) for choice in run.choices().values() if choice is not None]
    used = [entry.cls for entry in registry.entries if (entry.kind, entry.name) in chosen and entry.cls]
    return {module for cls in used for module in cls.requires}


def check_folder(out: Path, run: Run, registry: Registry, fresh: bool) -> None:
    """UsageError where the run folder is another run's."""
    file = out / "run.toml"
    try:
        old = parse_toml(read_text(file)) if file.exists() else None
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {file}: {error}", "Choose another folder with --out.") from error
    if old is None or fresh:
        return
    with suppress(DndError):  # as an earlier version wrote it: in today's names, with today's defaults
        old = build_run(old, registry, live_target=run.target.kind == "function").to_dict()
    there, here = flatten(_what(old)), flatten(_what(run.to_dict()))
    if there != here:
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
    """A run's settings without those that may change when it goes on."""
    return {key: value for key, value in tables.items() if key not in _HOW}
