"""From the choices of a run file to targets, probing sets, backends and units: the one place where they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dnd.api import Plugin, ProbingSet, Runtime, Target, Unit
from dnd.config.run import HALF, Choice, Run, TargetChoice
from dnd.config.units import SHOWN, parse_units
from dnd.errors import DndError, UsageError
from dnd.files import place_of
from dnd.plugin.guard import guard
from dnd.plugin.registry import KINDS, Registry
from dnd.probing.sets import FolderSet, UnionSet
from dnd.store.keys import digest_of
from dnd.store.source import source_digest

if TYPE_CHECKING:
    import torch

    from dnd.target.hooked import HookedTarget
    from dnd.target.layout import Reading
    from dnd.target.load import Preprocess


class Builder:
    """Makes what is chosen, each choice once. Nothing of it loads a model."""

    def __init__(self, registry: Registry, runtime: Runtime) -> None:
        self.registry, self.runtime = registry, runtime
        self._made: dict[int, tuple[Choice, Plugin]] = {}

    def plugin(self, choice: Choice) -> Any:
        """A backend, a method, a target or a probing set that a plugin offers."""
        if id(choice) not in self._made:
            made = self.registry.make(choice.kind, choice.name, choice.config, self.runtime)
            self._made[id(choice)] = choice, made
        return self._made[id(choice)][1]

    def plugins(self, run: Run) -> list[Plugin]:
        """All that the run names."""
        return [self.plugin(choice) for choice in run.choices().values() if choice.kind in KINDS]

    def target(self, choice: Choice) -> Target | None:
        """The named target; None for a function of the user's own."""
        if choice.kind != "target":
            return None
        target = cast(Target, self.plugin(choice))
        if isinstance(choice, TargetChoice):
            target.reads = {
                name: str(place_of(value, f"target.{name}")) if name in ("sae", "directions") else value
                for name, value in choice.reads.model_dump(exclude_defaults=True).items()
            }
        return target

    def module(self, choice: Choice) -> tuple[torch.nn.Module, Preprocess]:
        """The network to study, and what prepares an image for it."""
        target = self.target(choice)
        if target is None:
            from dnd.target.load import load_function

            return load_function(choice.name)
        try:
            return guard(f"the target {target.name!r}", target.build)()
        except DndError:
            raise
        except Exception as error:
            error.add_note(f"in the target {target.name!r}, while it was built")
            raise

    def probing(self, choices: Sequence[Choice], digests: Path | None = None) -> ProbingSet:
        """The probing set, or several as one. `digests` is a file that remembers the digests of folders."""
        sets: list[ProbingSet] = [
            FolderSet(Path(choice.name), digests, half=choice.config == HALF)
            if choice.kind == "folder"
            else self.plugin(choice)
            for choice in choices
        ]
        return sets[0] if len(sets) == 1 else UnionSet(sets)


def chosen_units(run: Run, sizes: Mapping[str, int], target: Target | None, probing: ProbingSet) -> list[Unit]:
    """The units that a run is about. `target` is None for a function or a module of the user's own."""
    if run.target.units.strip() != SHOWN:
        return [Unit(layer, i) for layer in run.target.layers for i in parse_units(run.target.units, sizes[layer])]
    if target is None:
        raise UsageError(f"{run.target.name} cannot say which units the images show", "Give --units all, or 0-9,12.")
    return [Unit(layer, i) for layer in run.target.layers for i in target.shown(layer, probing)]


def hook(run: Run, module: torch.nn.Module, preprocess: Preprocess, device: str | Sequence[str]) -> HookedTarget:
    """The network under watch as the run reads it: its layers, pooling and layout."""
    from dnd.target.hooked import HookedTarget

    target, pooling = run.target, run.exemplars.pooling
    return HookedTarget(module, preprocess, target.layers, device=device, pooling=pooling, reads=target.reads)


def identify(
    target: Target | None, module: torch.nn.Module, preprocess: Preprocess, readings: Mapping[str, Reading]
) -> str:
    """What names a network in the keys of stages: its fingerprint, and the code of the plugin that builds it."""
    from dnd.target.fingerprint import fingerprint

    code = source_digest(type(target)) if target else ""
    return digest_of([fingerprint(module, preprocess, readings), code])
