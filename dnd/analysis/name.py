"""Groups named by a run's own summarizer, asked for what their labels have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from dnd.analysis.group import Groups
from dnd.api import ItemError, Runtime, Summarizer, SummaryRequest, derive_seed
from dnd.config.read import read_run
from dnd.config.run import UNUSED
from dnd.errors import UsageError
from dnd.models.weights import Weights
from dnd.pipeline.build import Builder
from dnd.plugin.registry import Registry
from dnd.plugin.validate import checked_concepts, counted
from dnd.results.run import RunFolder


def name_groups(run: RunFolder, groups: Groups, *, categories: bool) -> tuple[Groups, dict[str, str]]:
    """The same groups, each named anew, and with `categories` the super-categories too; and those for which the
    summarizer has no answer, with its reason: they keep their central label.

    Raises UsageError where the run has no summarizer.
    """
    registry = Registry.load()
    described = read_run(run.folder / "run.toml", registry)
    choice = described.summarizer
    if choice.name == UNUSED:
        raise UsageError(f"the run in {run.folder} has no summarizer", "Leave out --name-with-summarizer.")
    runtime = Runtime(described.device, Weights.default().resolve, described.devices)
    backend: Summarizer = Builder(registry, runtime).plugin(choice)
    asked: dict[str, SummaryRequest] = {}
    for group in groups.groups:
        asked[f"group {group.name}"] = _request(described.seed, group.labels)
    wide: dict[str, list[str]] = {}
    for unit, category in groups.categories.items():
        wide.setdefault(category, []).append(groups.labels[unit])
    if categories:
        asked |= {f"category {name}": _request(described.seed, labels) for name, labels in wide.items()}
    names: dict[str, str] = {}
    unnamed: dict[str, str] = {}
    with backend:
        for key, request in asked.items():
            try:
                (answer,) = counted(backend.summarize([request]), 1)
                names[key] = checked_concepts(answer, 1)[0]
            except ItemError as error:
                unnamed[key] = str(error)

    titles = _told_apart({one.name: names.get(f"group {one.name}", one.name) for one in groups.groups})
    kinds = _told_apart({name: names.get(f"category {name}", name) for name in wide})
    named = tuple(replace(one, name=titles[one.name], category=kinds[one.category]) for one in groups.groups)
    return replace(
        groups, groups=named, categories={unit: kinds[name] for unit, name in groups.categories.items()}
    ), unnamed


def _told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Central label -> the name given; where several were given the same, their central label stands beside it."""
    times = Counter(names.values())
    return {own: given if times[given] == 1 or own == given else f"{given} ({own})" for own, given in names.items()}


def _request(seed: int, labels: tuple[str, ...] | list[str], most: int = 20) -> SummaryRequest:
    """As if the labels were captions: at most this many, more than a unit has exemplars."""
    return SummaryRequest(tuple(labels[:most]), 1, derive_seed(seed, "naming", *sorted(labels)))
