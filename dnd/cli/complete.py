"""What the shell offers at a tab: run files, plugins, models, layers (docs/quickstart.md). Nothing that goes wrong here
is shown: then there is nothing to offer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _begins(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def run_file(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """An installed one, or a file."""
    from dnd.config.describe import runfiles

    found = _begins((one.name for one in runfiles()), incomplete)
    return found or [CompletionItem(incomplete, type="file")]


def plugin(kind: str, *, or_folder: bool = False) -> Complete:
    """Those of a kind that can be used."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from dnd.plugin.registry import Registry

        found = _begins(Registry.load().names(kind), incomplete)
        return found or ([CompletionItem(incomplete, type="dir")] if or_folder else [])

    return complete


def any_plugin(context: click.Context, parameter: click.Parameter | None, incomplete: str) -> list[CompletionItem]:
    """Whatever its kind."""
    from dnd.plugin.registry import Registry

    return _begins(sorted({entry.name for entry in Registry.load().entries}), incomplete)


def model(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those of models.lock."""
    from dnd.models.weights import Weights

    return _begins(Weights.default().by_name, incomplete)


def layer(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Of the target that the words before it choose, which is built for that, off every network."""
    from dnd.offline.block import offline

    with suppress(Exception), offline():
        return _begins(_layers(context.params), incomplete)
    return []


def _layers(given: dict[str, object]) -> list[str]:
    import torch  # noqa: F401  # before the guard of plugins compares its settings

    from dnd.api import Runtime
    from dnd.config.read import examine_run
    from dnd.models.weights import Weights
    from dnd.pipeline.build import Builder
    from dnd.plugin.registry import Registry

    registry = Registry.load()
    settings = given.get("settings")
    target = {"target.name": given["target"]} if given.get("target") else {}
    options = {**target, "target.layers": ["x"]}
    run, _ = examine_run(
        given.get("runfile"),  # type: ignore[arg-type]  # a word of the command line
        registry,
        options=options,
        settings=settings if isinstance(settings, tuple) else (),
    )
    module, _ = Builder(registry, Runtime("cpu", Weights.default().resolve)).module(run.target)
    return [name for name, _ in module.named_modules() if name]
