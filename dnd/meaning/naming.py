"""Groups named by a run's own summarizer, asked for what their labels have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from dnd.answers import checked_concepts, counted
from dnd.api import ItemError, Runtime, Summarizer, SummaryRequest
from dnd.errors import UsageError
from dnd.meaning.grouping import Groups
from dnd.reading import RunFolder
from dnd.registry import Registry
from dnd.runfile import UNUSED, read_run
from dnd.store import derive_seed
from dnd.weights import Weights


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
    backend = cast(Summarizer, registry.make("summarizer", choice.name, choice.config, runtime))
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

    def kind(name: str) -> str:
        return names.get(f"category {name}", name)

    named = tuple(
        replace(group, name=names.get(f"group {group.name}", group.name), category=kind(group.category))
        for group in groups.groups
    )
    return replace(
        groups, groups=named, categories={unit: kind(name) for unit, name in groups.categories.items()}
    ), unnamed


def _request(seed: int, labels: tuple[str, ...] | list[str], most: int = 20) -> SummaryRequest:
    """As if the labels were captions: at most so many, which is more than a unit has exemplars."""
    return SummaryRequest(tuple(labels[:most]), 1, derive_seed(seed, "naming", *sorted(labels)))
