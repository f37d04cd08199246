"""What a classifier loses or gains without some of its units, beside losing as many at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dnd.analysis.accuracy import labelled
from dnd.analysis.compare import Comparison, compare
from dnd.api import ProbingSet, Runtime, Unit
from dnd.config.read import read_run
from dnd.config.run import Run
from dnd.errors import DndError, UsageError
from dnd.models.weights import Weights
from dnd.pipeline.build import Builder
from dnd.plugin.registry import Registry
from dnd.results.run import RunFolder
from dnd.target.hooked import HookedTarget

__all__ = ["Comparison", "PruneSpec", "Pruning", "carry_out", "choose", "compare"]

LEAST = 0.7
"""Cosine from which a label counts as meaning the concept."""
_DATASET = "Name a folder with one folder of images per class, or a probing set that knows its images' classes."

_LISTED = "`dnd export` lists the units with their labels and statuses, `dnd group` those that are like no other."


@dataclass(frozen=True)
class PruneSpec:
    """What is to be pruned, and on what that is to be measured."""

    concepts: Sequence[str] = ()
    ungrouped: bool = False
    uninterpretable: bool = False
    least: float | None = None
    layer: Sequence[str] = ()
    encoder: str | None = None
    dataset: str | None = None
    settings: Sequence[str] = ()
    classes: str | None = None
    seeds: int = 20
    device: str | None = None


@dataclass(frozen=True)
class Pruning:
    """The chosen units, why, and what came of it."""

    why: Mapping[Unit, str]
    labels: Mapping[Unit, str]
    sizes: Mapping[str, int]
    """Layer -> the highest unit that the run has, and one."""
    comparison: Comparison | None = None

    def units(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for unit in self.why:
            found.setdefault(unit.layer, []).append(unit.index)
        return found

    def record(self) -> dict[str, Any]:
        """As JSON."""
        rows = [
            {"layer": unit.layer, "unit": unit.index, "label": self.labels[unit], "why": why}
            for unit, why in self.why.items()
        ]
        found: dict[str, Any] = {"pruned": rows}
        if self.comparison:
            c = self.comparison
            found |= {
                "images": c.images,
                "before": c.before,
                "after": c.after,
                "change_95": list(c.change),
                "random": {"seeds": len(c.random), "mean": float(np.mean(c.random)), "accuracies": list(c.random)},
                "random_drawn_from": c.active,
                "classes": {
                    name: dict(zip(("before", "after", "random"), values, strict=True))
                    for name, values in c.classes.items()
                },
            }
        return found


def carry_out(run: RunFolder, spec: PruneSpec) -> Pruning:
    """Choose the units, and measure where the spec names a data set."""
    if not (spec.concepts or spec.ungrouped or spec.uninterpretable):
        raise UsageError("which units are to go?", "Say --concept TEXT, --ungrouped or --uninterpretable.")
    if not spec.dataset and (spec.settings or spec.classes):
        raise UsageError("--set and --classes go with --eval", "Name the data set with --eval.")
    chosen = choose(run, spec)
    if not spec.dataset:
        return chosen
    registry = Registry.load()
    described = _described(run, registry, spec)
    builder = Builder(registry, Runtime(described.device, Weights.default().resolve))
    data = labelled(_data(described, builder), Path(spec.classes) if spec.classes else None)
    module, preprocess = builder.module(described.target)
    target, device = described.target, described.device
    with HookedTarget(module, preprocess, target.layers, device=device, reads=target.reads) as hooked:
        readings = hooked.readings
    found = compare(
        module,
        preprocess,
        chosen.units(),
        data,
        seeds=spec.seeds,
        device=device,
        among=_among(run),
        readings=readings,
    )
    return Pruning(chosen.why, chosen.labels, chosen.sizes, found)


def choose(run: RunFolder, spec: PruneSpec) -> Pruning:
    """The units that a spec means. Raises UsageError where there are none."""
    from dnd.analysis.find import find_units
    from dnd.analysis.group import group_units
    from dnd.models.encoder import load_encoder

    unknown = [layer for layer in spec.layer if layer not in run.layers]
    if unknown:
        raise UsageError(f"the run in {run.folder} has no layer {unknown[0]!r}", f"It has {', '.join(run.layers)}.")
    encoder = load_encoder(spec.encoder) if spec.concepts or spec.ungrouped else None
    least = LEAST if spec.least is None else spec.least
    why: dict[Unit, str] = {}
    nearest = ""
    if encoder is not None:
        for text in spec.concepts:
            hits = find_units(run, text, encoder)
            why |= {hit.unit: f"{hit.nearness:.2f} near {text!r}" for hit in hits if hit.nearness >= least}
            nearest = f" The nearest label to {text!r} is {hits[0].label!r}, {hits[0].nearness:.2f}." if hits else ""
        if spec.ungrouped:
            why |= dict.fromkeys(group_units(run, encoder).ungrouped, "like no other unit")
    if spec.uninterpretable:
        why |= {one.unit: "uninterpretable" for one in run.labels if one.status == "uninterpretable"}
    order = [one.unit for one in run.labels if one.unit in why and (not spec.layer or one.unit.layer in spec.layer)]
    if not order:
        hint = "`dnd find` shows what is near a text; --least says how near." if spec.concepts else _LISTED
        raise UsageError(f"no unit of the run in {run.folder} fits.{nearest}", hint)
    labels = {one.unit: one.labels[0][0] if one.labels else f"({one.status})" for one in run.labels}
    return Pruning(
        {u: why[u] for u in order}, {u: labels[u] for u in order}, {k: max(v) + 1 for k, v in _among(run).items()}
    )


def _among(run: RunFolder) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in run.labels:
        found.setdefault(one.unit.layer, []).append(one.unit.index)
    return found


def _described(run: RunFolder, registry: Registry, spec: PruneSpec) -> Run:
    """The run with the data set as its probing set."""
    name = str(spec.dataset)
    options: dict[str, Any] = {"probing.sets": [name], **({"device": spec.device} if spec.device else {})}
    try:
        read_run(run.folder / "run.toml", registry)
    except DndError as error:
        raise UsageError(
            f"the target of the run in {run.folder} cannot be had again: {error}",
            error.hint
            or "For a live module use dnd.analysis.ablate.without, or dnd.analysis.prune.compare, from Python.",
        ) from error
    settings = [f"probing.{text}" for text in spec.settings]
    try:
        return read_run(run.folder / "run.toml", registry, options=options, settings=settings)
    except DndError as error:
        raise UsageError(f"--eval {name}: {error}", error.hint or _DATASET) from error


def _data(run: Run, builder: Builder) -> ProbingSet:
    try:
        return builder.probing(run.probing)
    except UsageError as error:
        raise UsageError(str(error), error.hint if run.probing[0].kind != "folder" else _DATASET) from error
